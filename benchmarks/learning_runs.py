"""What one run of `benchmarks/learning.py` is, what it costs, and the file that keeps all runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.image_sets import Split
from model.evaluation import Report


class Cost(NamedTuple):
    """Time on the clock, and time of all processors together."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def plus(self, other: Cost, share: float = 1.0) -> Cost:
        """Return the sum with a share of another cost."""
        return Cost(self.wall_s + share * other.wall_s, self.cpu_s + share * other.cpu_s)


class Stopwatch:
    """Runs from the moment it is made."""

    def __init__(self) -> None:
        self._started = Cost(time.perf_counter(), time.process_time())

    def read(self) -> Cost:
        """Return the cost so far."""
        return Cost(time.perf_counter(), time.process_time()).plus(self._started, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a method reached on the test part, 0 to 1, and its cost.

    The cost runs from image files and a file of weights to something that can predict; reading the test part and
    predicting it is not in it. ``pool_wall_s`` is the part of it for embedding the pool. ``note`` says what the
    method chose.
    """

    macro_f1: float
    accuracy: float
    ece: float
    uncalibrated_ece: float
    log_loss: float
    wall_s: float
    cpu_s: float
    pool_wall_s: float = 0.0
    note: str = ""

    @classmethod
    def of(
        cls,
        report: Report,
        cost: Cost,
        *,
        uncalibrated_ece: float | None = None,
        pool_wall_s: float = 0.0,
        note: str = "",
    ) -> Outcome:
        """Return the outcome that a report on the test part tells; a method without calibration has one ECE."""
        return Outcome(
            macro_f1=report.macro_f1,
            accuracy=report.accuracy,
            ece=report.ece,
            uncalibrated_ece=report.ece if uncalibrated_ece is None else uncalibrated_ece,
            log_loss=report.log_loss,
            **cost._asdict(),
            pool_wall_s=pool_wall_s,
            note=note,
        )


class Combination(NamedTuple):
    """What distinguishes a run from all others."""

    image_set: str
    backbone: str
    n_per_class: int
    seed: int
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Outcome):
    """A finished run; ``load`` is the machine's load average when it ended."""

    image_set: str
    backbone: str
    n_per_class: int
    seed: int
    method: str
    n_labels: int
    device: str
    threads: int
    load: float
    finished_at: str

    @property
    def combination(self) -> Combination:
        """What distinguishes it."""
        return Combination(self.image_set, self.backbone, self.n_per_class, self.seed, self.method)


class RunFile:
    """Keeps every run as soon as it is finished, so that a benchmark of hours can be stopped and started again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        self.runs = [Run(**row) for row in rows]

    def drop(self, methods: Iterable[str]) -> None:
        """Forget the runs of some methods."""
        self.runs = [run for run in self.runs if run.method not in set(methods)]

    def write(self, description: dict[str, Any], summary: dict[str, Any]) -> None:
        """Replace the file."""
        report = {**description, "summary": summary, "runs": [asdict(run) for run in self.runs]}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self._path)


class FeatureMemory:
    """Features of images, computed once for all runs; each run is charged what those it needs cost."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Path], NDArray[Any]] = {}
        self._costs: dict[tuple[str, Path], Cost] = {}
        self._spent = Cost()
        self._needed: list[tuple[str, Path]] = []

    def recall(
        self, network: str, paths: Sequence[Path], compute: Callable[[Sequence[Path]], NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the features, one row per path, of the network of that name; ``compute`` makes those unknown yet."""
        missing = [path for path in paths if (network, path) not in self._rows]
        stopwatch = Stopwatch()
        computed = compute(missing) if missing or not paths else ()
        cost = stopwatch.read()
        if len(computed) != len(missing):
            raise SystemExit(f"only {len(computed)} of {len(missing)} images can be read: repair or remove the others")
        for path, row in zip(missing, computed, strict=True):
            self._rows[network, path] = row
            self._costs[network, path] = Cost().plus(cost, 1 / len(missing))
        self._spent = self._spent.plus(cost)
        self._needed += [(network, path) for path in paths]
        return np.stack([self._rows[network, path] for path in paths]) if paths else np.asarray(computed)

    def settle(self, measured: Cost, split: Split) -> tuple[Cost, float]:
        """End a run that took ``measured``.

        Returns:
            Its cost with all features computed anew but those of the test part, and the seconds for the pool's.
        """
        test, pool = set(split.test.paths), set(split.pool)
        cost, pool_wall_s = measured.plus(self._spent, -1), 0.0
        for key in self._needed:
            if key[1] not in test:
                cost = cost.plus(self._costs[key])
            if key[1] in pool:
                pool_wall_s += self._costs[key].wall_s
        self._spent, self._needed = Cost(), []
        return cost, pool_wall_s
