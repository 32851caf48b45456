"""How many labels each query strategy needs, on photos of one's own.

    python benchmarks/active.py --images DIR --weights-dir DIR --test-split FILE [--strategies random margin tandem]

Images, weights and test split are those of `benchmarks/learning.py`. Every photo is embedded once (--cache keeps the
features); then the loop of asking, labelling and learning is replayed (`model.simulation`) for each strategy and
seed, with a new model after every batch. What is in the output already is kept: start again and it goes on. Labels
needed are counted, interpolated between budgets, until a strategy's
mean accuracy reaches that of random selection at the largest budget.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from backend.processes import one_linear_algebra_thread
from backend.promotion import targets_of
from benchmarks.image_sets import ImageSet, read_image_sets
from benchmarks.networks import Pretrained
from model.backbones import load_backbone
from model.features import Engine
from model.query import STRATEGIES
from model.simulation import Images, simulate

LABELS_PER_CLASS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50)
RESULTS = Path(__file__).parent / "results"
TABLE_WIDTH = 150
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Features:
    """One set of photos as one backbone sees it."""

    set_name: str
    backbone: str
    images: Images
    test_images: Images
    n_classes: int
    block_sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracy and macro-F1 on the test photos, (n_seeds, n_budgets); seconds are those of one seed, the median."""

    set_name: str
    backbone: str
    strategy: str
    n_labels: list[int]
    accuracy: list[list[float]]
    macro_f1: list[list[float]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A strategy against random selection.

    `labels_needed` to reach `target_accuracy`, that of random selection with `random_labels`: `None` where it is
    never reached. `worst_difference` is the lowest mean difference of accuracy, paired by seed, over all budgets,
    and `worst_standard_error` that mean's.
    """

    set_name: str
    backbone: str
    strategy: str
    target_accuracy: float
    random_labels: int
    labels_needed: float | None
    worst_difference: float
    worst_standard_error: float
    worst_at: int


def embedded(image_set: ImageSet, backbone: str, weights: Path, cache: Path | None) -> Features:
    images, test_images = image_set.pool, image_set.test
    stored = cache / f"{image_set.name}-{backbone}.npz" if cache else None
    if stored and stored.exists():
        arrays = dict(np.load(stored))
    else:
        loaded = load_backbone(backbone, weights)
        result = Engine(loaded).embed([*images.paths, *test_images.paths], max_pixels=MAX_PIXELS)
        if result.problems:
            raise SystemExit(f"{image_set.name}: photos that cannot be read: {result.problems}")
        n_images = len(images.paths)
        arrays = {
            "features": result.features[:n_images],
            "test_features": result.features[n_images:],
            "block_sizes": np.array(loaded.block_sizes),
        }
        if stored:
            np.savez(stored, **arrays)
    targets, test_targets = (targets_of(part.labelled, part.schema) for part in (images, test_images))
    return Features(
        set_name=image_set.name,
        backbone=backbone,
        images=Images(features=arrays["features"], targets=targets),
        test_images=Images(features=arrays["test_features"], targets=test_targets),
        n_classes=len(images.schema.class_names),
        block_sizes=tuple(arrays["block_sizes"].tolist()),
    )


def measure(features: Features, strategy: str, n_seeds: int, batch_size: int) -> Curve:
    replays, seconds = [], []
    for seed in range(n_seeds):
        started_s = time.perf_counter()
        replays.append(
            list(
                simulate(
                    features.images,
                    features.test_images,
                    n_classes=features.n_classes,
                    block_sizes=features.block_sizes,
                    strategy=strategy,
                    budgets=[number * features.n_classes for number in LABELS_PER_CLASS],
                    batch_size=batch_size,
                    seed=seed,
                )
            )
        )
        seconds.append(time.perf_counter() - started_s)
    return Curve(
        set_name=features.set_name,
        backbone=features.backbone,
        strategy=strategy,
        n_labels=[each.n_labels for each in replays[0]],
        accuracy=[[round(each.accuracy, 4) for each in replay] for replay in replays],
        macro_f1=[[round(each.macro_f1, 4) for each in replay] for replay in replays],
        seconds=round(statistics.median(seconds), 1),
    )


def labels_needed(n_labels: Sequence[int], accuracies: np.ndarray, target: float) -> float | None:
    reached = np.flatnonzero(accuracies >= target)
    if not len(reached):
        return None
    last = int(reached[0])
    if last == 0:
        return float(n_labels[0])
    pair = slice(last - 1, last + 1)
    return float(np.interp(target, accuracies[pair], n_labels[pair]))


def savings(curves: Sequence[Curve]) -> Iterator[Saving]:
    """Compare the curves of one set and backbone with that of random selection, where it is among them."""
    for random in (curve for curve in curves if curve.strategy == "random"):
        baseline = np.array(random.accuracy)
        target = float(baseline.mean(axis=0)[-1])
        for curve in curves:
            accuracies = np.array(curve.accuracy)
            differences = accuracies - baseline
            worst = int(differences.mean(axis=0).argmin())
            needed = labels_needed(curve.n_labels, accuracies.mean(axis=0), target)
            yield Saving(
                set_name=curve.set_name,
                backbone=curve.backbone,
                strategy=curve.strategy,
                target_accuracy=round(target, 4),
                random_labels=random.n_labels[-1],
                labels_needed=None if needed is None else round(needed, 1),
                worst_difference=round(float(differences.mean(axis=0)[worst]), 4),
                worst_standard_error=round(float(differences[:, worst].std(ddof=1) / len(differences) ** 0.5), 4),
                worst_at=curve.n_labels[worst],
            )


def show(curves: Sequence[Curve], console: Console) -> None:
    table = Table(
        "strategy",
        *(str(number) for number in LABELS_PER_CLASS),
        "labels needed",
        "worst against random",
        title=f"{curves[0].set_name}, {curves[0].backbone}: accuracy in % by labels per class",
    )
    by_strategy = {saving.strategy: saving for saving in savings(curves)}
    for curve in curves:
        saving = by_strategy.get(curve.strategy)
        cells = [f"{100 * mean:.1f}" for mean in np.mean(curve.accuracy, axis=0)]
        cells += [""] * (len(LABELS_PER_CLASS) - len(cells))
        if saving:
            share = (
                f"{saving.labels_needed:.0f} ({100 * saving.labels_needed / saving.random_labels:.0f} %)"
                if saving.labels_needed is not None
                else "never"
            )
            worst = f"{100 * saving.worst_difference:+.1f} ± {100 * saving.worst_standard_error:.1f}"
            cells += [share, f"{worst} at {saving.worst_at}"]
        table.add_row(curve.strategy, *cells)
    console.print(table)


def draw(curves: Sequence[Curve], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = by_panel(curves)
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, grid = pyplot.subplots(n_rows, n_columns, figsize=(5 * n_columns, 4 * n_rows), squeeze=False)
    for axes, ((set_name, backbone), group) in zip(grid.flat, panels.items(), strict=False):
        for curve in group:
            means = 100 * np.mean(curve.accuracy, axis=0)
            errors = 100 * np.std(curve.accuracy, axis=0, ddof=1) / len(curve.accuracy) ** 0.5
            colour = f"C{STRATEGIES.index(curve.strategy)}"
            axes.plot(curve.n_labels, means, marker=".", label=curve.strategy, color=colour)
            axes.fill_between(curve.n_labels, means - errors, means + errors, alpha=0.15, color=colour)
        axes.set(title=f"{set_name}, {backbone}", xlabel="labels", ylabel="accuracy, %", xscale="log")
        axes.legend(fontsize="small")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def read(path: Path, arguments: argparse.Namespace) -> list[Curve]:
    """Return the curves of an earlier run with as many seeds and the same batches."""
    if not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    if (report["seeds"], report["batch_size"]) != (arguments.seeds, arguments.batch_size):
        raise SystemExit(f"{path.name} holds runs with other seeds or batches: delete it, or name another --output")
    return [Curve(**each) for each in report["curves"]]


def write(path: Path, arguments: argparse.Namespace, curves: Sequence[Curve]) -> None:
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/active.py --images DIR --weights-dir DIR --test-split FILE",
        "machine": {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "scipy", "torch", "torchvision")},
        "load": os.getloadavg()[0],
        "seeds": arguments.seeds,
        "batch_size": arguments.batch_size,
        "labels_per_class": LABELS_PER_CLASS,
        "savings": [asdict(saving) for group in by_panel(curves).values() for saving in savings(group)],
        "curves": [asdict(each) for each in curves],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def by_panel(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Return the curves by set and backbone."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        panels.setdefault((curve.set_name, curve.backbone), []).append(curve)
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    parser.add_argument("--test-split", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", help="all of the test split without it")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "densenet121"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--batch-size", type=int, default=5, help="labels until there is a new model")
    parser.add_argument("--cache", type=Path, help="folder that keeps features")
    parser.add_argument("--output", type=Path, default=RESULTS / "active.json")
    parser.add_argument("--figure", type=Path, default=RESULTS / "active.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    one_linear_algebra_thread()
    curves = read(arguments.output, arguments)
    finished = {(curve.set_name, curve.backbone, curve.strategy) for curve in curves}
    image_sets = read_image_sets(arguments.images, arguments.test_split, arguments.sets)
    for backbone, image_set in product(arguments.backbones, image_sets):
        wanted = [each for each in arguments.strategies if (image_set.name, backbone, each) not in finished]
        if not wanted:
            continue
        weights = Pretrained.find(backbone, arguments.weights_dir).weights
        features = embedded(image_set, backbone, weights, arguments.cache)
        for strategy in wanted:
            curves.append(measure(features, strategy, arguments.seeds, arguments.batch_size))
            write(arguments.output, arguments, curves)
    for group in by_panel(curves).values():
        show(group, Console(width=TABLE_WIDTH))
    draw(curves, arguments.figure)


if __name__ == "__main__":
    main()
