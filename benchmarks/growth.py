"""How cost grows with images and classes: head fit, scoring of the pool, feature store; time and memory.

    python benchmarks/growth.py [--images 1000 … 1000000] [--labels 1000 … 1000000] [--classes 10 100 1000]

Features are synthetic. Everything runs on one thread, each measurement in a process of its own, so that its peak of
memory is its own. Processor seconds are what counts, because other work makes those of the clock longer; but what waits
for the disk shows in the clock's alone. The largest store takes three and a half gigabytes of disk for a while.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.adapters.features import FeatureFiles
from backend.processes import one_linear_algebra_thread
from benchmarks.described import described
from model.head import Head
from model.learning import Examples, learn

BACKBONE_DIGEST = hashlib.sha256(b"synthetic").hexdigest()
NARROW_BLOCKS = (512,)
DEFAULT_BLOCKS = (40, 112, 960)
"""What mobilenet_v3_large, the default, is embedded as."""
CHUNK_SIZE = 8192
PAGE_SIZE = 64
"""How many images are embedded, and so appended, at a time."""
N_POOL = 2000
TABLE_WIDTH = 190
ROUNDS = 3
ROUNDS_BUDGET_S = 5.0


class Seconds(NamedTuple):
    """Seconds of the processor and of the clock."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one thing cost; ``peak_bytes`` is the most memory its process had, libraries and mapped files included."""

    what: str
    n_images: int
    n_classes: int | None
    n_features: int
    cpu_s: float
    wall_s: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--labels", type=int, nargs="+", default=[1000, 10_000, 20_000, 100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--folder", type=Path, help="where there is room for the store")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started_s = time.monotonic()
    measurements = []
    for each in run(sorted(arguments.images), sorted(arguments.labels), sorted(arguments.classes), arguments.folder):
        print(f"{title(each)}, {each.n_images:,} images: {cell(each)}")
        measurements.append(each)
    show(measurements)
    if arguments.output:
        report = {
            **described("numpy", "scipy", threads=1),
            "wall_s": round(time.monotonic() - started_s),
            "results": [asdict(each) for each in measurements],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def run(
    sizes: Sequence[int], label_counts: Sequence[int], class_counts: Sequence[int], folder: Path | None
) -> Iterator[Measurement]:
    """Yield all measurements."""
    for n_labels in label_counts:
        for n_classes in class_counts:
            if n_classes <= n_labels:
                yield from alone(measure_fit, n_labels, n_classes)
    for n_images, blocks in product(sizes, (NARROW_BLOCKS, DEFAULT_BLOCKS)):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            yield from alone(measure_appending, root, n_images, blocks)
            yield from alone(measure_reading, root, n_images, blocks)
            for n_classes in class_counts:
                yield from alone(measure_scoring_alone, n_images, n_classes, blocks)
                yield from alone(measure_scoring, root, n_images, n_classes, blocks)
            yield from alone(measure_compacting, root, n_images, blocks)


def alone(measure: Callable[..., list[Measurement]], *arguments: object) -> list[Measurement]:
    """Measure in a new process, which begins with one thread for linear algebra."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=one_linear_algebra_thread) as executor:
        return executor.submit(measure, *arguments).result()


# --- what is measured


def measure_fit(n_labels: int, n_classes: int) -> list[Measurement]:
    """Fit a head on labelled images, helped by a pool; as after each label."""
    random = np.random.default_rng(0)
    classes = np.arange(n_labels + N_POOL) % n_classes
    centres = random.normal(1.0, 0.25, (n_classes, sum(DEFAULT_BLOCKS))).astype(np.float32)
    features = np.empty((len(classes), sum(DEFAULT_BLOCKS)), np.float16)
    for rows in chunks(len(classes)):
        noise = 0.8 * random.standard_normal((len(classes[rows]), sum(DEFAULT_BLOCKS)), np.float32)
        features[rows] = np.abs(centres[classes[rows]] + noise)
    examples = Examples(
        features=features[:n_labels],
        targets=classes[:n_labels],
        digests=tuple(digests(range(n_labels))),
    )
    names = tuple(str(number) for number in range(n_classes))

    def fit() -> None:
        learn(examples, names, multiple=False, block_sizes=DEFAULT_BLOCKS, pool=features[n_labels:])

    return [measurement("fit a head", n_labels, n_classes, DEFAULT_BLOCKS, quickest(lambda: timed(fit)))]


def measure_scoring_alone(n_images: int, n_classes: int, blocks: tuple[int, ...]) -> list[Measurement]:
    """Score rows that are in memory: the same few thousand again and again."""
    features, head = make_features(min(n_images, CHUNK_SIZE), blocks, seed=0), make_head(blocks, n_classes)

    def score() -> None:
        for rows in chunks(n_images):
            head.logits(features[: rows.stop - rows.start])

    return [measurement("score the pool", n_images, n_classes, blocks, quickest(lambda: timed(score)))]


def measure_appending(root: str, n_images: int, blocks: tuple[int, ...]) -> list[Measurement]:
    """Fill a store, then append as many images as are embedded at a time."""
    store, seconds = FeatureFiles(Path(root)), []
    for rows in chunks(n_images):
        features = make_features(rows.stop - rows.start, blocks, seed=rows.start)
        names = digests(range(rows.start, rows.stop))
        seconds.append(timed(lambda: store.append(BACKBONE_DIGEST, names, features, block_sizes=blocks)))  # noqa: B023
    filled = measurement("store all", n_images, None, blocks, total(seconds))
    page = make_features(PAGE_SIZE, blocks, seed=1)
    pages = [digests(range(-PAGE_SIZE * (number + 1), -PAGE_SIZE * number)) for number in range(15)]
    appended = median(
        [lambda names=names: store.append(BACKBONE_DIGEST, names, page, block_sizes=blocks) for names in pages]
    )
    return [filled, measurement(f"store {PAGE_SIZE} more", n_images, None, blocks, appended)]


def measure_reading(root: str, n_images: int, blocks: tuple[int, ...]) -> list[Measurement]:
    """Open a store, and look images up in it that lie anywhere."""
    opening = quickest(lambda: timed(lambda: FeatureFiles(Path(root)).read(BACKBONE_DIGEST, digests([0]))))
    opened = measurement("open the store", n_images, None, blocks, opening)
    store, random = FeatureFiles(Path(root)), np.random.default_rng(0)
    store.count(BACKBONE_DIGEST)
    pages = [digests(random.integers(0, n_images, PAGE_SIZE).tolist()) for _ in range(50)]
    found = median([lambda names=names: store.read(BACKBONE_DIGEST, names) for names in pages])
    return [opened, measurement(f"look up {PAGE_SIZE}", n_images, None, blocks, found)]


def measure_scoring(root: str, n_images: int, n_classes: int, blocks: tuple[int, ...]) -> list[Measurement]:
    """Open a store, read all its rows and score them."""
    head = make_head(blocks, n_classes)

    def score() -> Seconds:
        store, seconds = FeatureFiles(Path(root)), []
        for rows in chunks(n_images):
            names = digests(range(rows.start, rows.stop))
            seconds.append(timed(lambda: head.logits(store.read(BACKBONE_DIGEST, names)[0])))  # noqa: B023
        return total(seconds)

    return [measurement("open, read and score", n_images, n_classes, blocks, quickest(score))]


def measure_compacting(root: str, n_images: int, blocks: tuple[int, ...]) -> list[Measurement]:
    """Remove every other image."""
    kept = digests(range(0, n_images, 2))
    compacting = timed(lambda: FeatureFiles(Path(root)).compact(BACKBONE_DIGEST, kept))
    return [measurement("compact to half", n_images, None, blocks, compacting)]


def measurement(
    what: str, n_images: int, n_classes: int | None, blocks: tuple[int, ...], seconds: Seconds
) -> Measurement:
    return Measurement(
        what=what,
        n_images=n_images,
        n_classes=n_classes,
        n_features=sum(blocks),
        cpu_s=seconds.cpu,
        wall_s=seconds.wall,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def timed(work: Callable[[], object]) -> Seconds:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu_s, time.perf_counter() - wall_s)


def total(seconds: Sequence[Seconds]) -> Seconds:
    return Seconds(sum(each.cpu for each in seconds), sum(each.wall for each in seconds))


def quickest(measure: Callable[[], Seconds]) -> Seconds:
    """Return the quickest of some rounds."""
    rounds: list[Seconds] = []
    while len(rounds) < ROUNDS and total(rounds).cpu < ROUNDS_BUDGET_S:
        rounds.append(measure())
    return min(rounds)


def median(works: Sequence[Callable[[], object]]) -> Seconds:
    seconds = [timed(work) for work in works]
    return Seconds(statistics.median(each.cpu for each in seconds), statistics.median(each.wall for each in seconds))


# --- what it is measured on


def chunks(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, CHUNK_SIZE):
        yield slice(start, min(start + CHUNK_SIZE, n_rows))


def digests(numbers: Sequence[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def make_features(n_rows: int, blocks: tuple[int, ...], *, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).random((n_rows, sum(blocks)), np.float32).astype(np.float16)


def make_head(blocks: tuple[int, ...], n_classes: int) -> Head:
    random = np.random.default_rng(0)
    return Head(
        block_sizes=blocks,
        centre=np.full(sum(blocks), 0.5, np.float32),
        weight=random.standard_normal((sum(blocks), n_classes), np.float32),
        bias=np.zeros(n_classes, np.float32),
    )


# --- what is shown


def title(each: Measurement) -> str:
    return f"{each.what}, {each.n_features} features" + (f", {each.n_classes} classes" if each.n_classes else "")


def cell(each: Measurement) -> str:
    return f"{each.cpu_s:.2g} s ({each.wall_s:.2g}), {each.peak_bytes / 1e6:.0f} MB"


def show(measurements: Sequence[Measurement]) -> None:
    """Print a row for each thing measured, with a column for each number of images, and how the last step compares."""
    series: dict[str, dict[int, Measurement]] = defaultdict(dict)
    for each in measurements:
        series[title(each)][each.n_images] = each
    sizes = sorted({each.n_images for each in measurements})
    table = Table(
        "",
        *(f"{size:,} images" for size in sizes),
        "last step",
        title="Seconds of the processor (of the clock), and peak memory; the last step in times of linear",
    )
    for name, by_size in series.items():
        cells = [cell(by_size[size]) if size in by_size else "" for size in sizes]
        table.add_row(name, *cells, f"{last_step(by_size):.2f}" if len(by_size) > 1 else "")
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def last_step(by_size: dict[int, Measurement]) -> float:
    """Return how much more the largest size costs than the one before, divided by how many more images it has."""
    *_, smaller, larger = (by_size[size] for size in sorted(by_size))
    return (larger.cpu_s / smaller.cpu_s) / (larger.n_images / smaller.n_images)


if __name__ == "__main__":
    main()
