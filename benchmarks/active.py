"""How many labels each query strategy needs, on photos of one's own.

    python -m benchmarks.active --images DIR --weights-dir DIR --test-split FILE [--strategies random margin tandem]

Images, weights and test split are those of `benchmarks/learning.py`. Every photo is embedded once (--cache keeps the
features); then the loop of asking, labelling and learning is replayed (`model.simulation`) for each strategy and
seed, with a new model after every batch, as large as the view "Label next" is by default. What is in the output
already is kept: start again and it goes on. Labels needed, and what else the tables show: see `model.query_report`.
What backbones were pretrained to say of ants and bees is left out: it would leave little to learn from labels. The
target is the mean of more seeds than strategies are replayed with, for it is cheap. Beside it stands what all photos
there are would teach: a target above that was reached by luck, and no choice of labels can be expected to reach it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from backend.processes import one_linear_algebra_thread
from backend.promotion import targets_of
from backend.terminal import output, show
from benchmarks.described import described
from benchmarks.frozen import DEFAULTS
from benchmarks.image_sets import ImageSet, read_image_sets
from benchmarks.networks import Pretrained
from model.backbones import load_backbone
from model.features import Engine
from model.query import STRATEGIES
from model.query_report import BASELINE, accuracy_rows, by_panel, draw, saving_rows, savings
from model.simulation import LABELS_PER_CLASS, Curve, Images, LabelledSet, default_budgets, replay

RESULTS = Path(__file__).parent / "results"
MAX_PIXELS = 50_000_000


def embedded(image_set: ImageSet, backbone: str, weights: Path, cache: Path | None) -> LabelledSet:
    images, test_images = image_set.pool, image_set.test
    stored = cache / f"{image_set.name}-{backbone}.npz" if cache else None
    if stored and stored.exists():
        arrays = dict(np.load(stored))
    else:
        loaded = load_backbone(backbone, weights, n_views=DEFAULTS.image_views)
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
    return LabelledSet(
        name=image_set.name,
        backbone=backbone,
        images=Images(features=arrays["features"], targets=targets),
        test_images=Images(features=arrays["test_features"], targets=test_targets),
        n_classes=len(images.schema.class_names),
        block_sizes=tuple(arrays["block_sizes"].tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The accuracy, 0 to 1, that all ``n_labels`` photos of a set teach: a mean over seeds, which decide the folds.

    ``test_standard_error`` is that of a share of ``n_test`` photos: as much as other test photos would have changed it.
    """

    set_name: str
    backbone: str
    n_labels: int
    accuracy: float
    n_test: int
    test_standard_error: float


def limit(labelled: LabelledSet, n_seeds: int) -> Limit:
    n_labels = len(labelled.images.targets)
    curve = replay(labelled, "random", budgets=[n_labels], batch_size=n_labels, n_seeds=n_seeds)
    accuracy, n_test = float(np.mean(curve.accuracy)), len(labelled.test_images.targets)
    return Limit(
        set_name=labelled.name,
        backbone=labelled.backbone,
        n_labels=n_labels,
        accuracy=round(accuracy, 4),
        n_test=n_test,
        test_standard_error=round((accuracy * (1 - accuracy) / n_test) ** 0.5, 4),
    )


def read(path: Path, arguments: argparse.Namespace) -> tuple[list[Curve], list[Limit]]:
    """Return what an earlier run with as many seeds and the same batches found."""
    if not path.exists():
        return [], []
    report = json.loads(path.read_text(encoding="utf-8"))
    if any(report[name] != getattr(arguments, name) for name in ("seeds", "random_seeds", "batch_size")):
        raise SystemExit(f"{path.name} holds runs with other seeds or batches: delete it, or name another --output")
    return [Curve(**each) for each in report["curves"]], [Limit(**each) for each in report.get("all_labels", [])]


def write(path: Path, arguments: argparse.Namespace, curves: Sequence[Curve], limits: Sequence[Limit]) -> None:
    report = {
        **described("numpy", "scipy", "torch", "torchvision"),
        "seeds": arguments.seeds,
        "random_seeds": arguments.random_seeds,
        "batch_size": arguments.batch_size,
        "labels_per_class": LABELS_PER_CLASS,
        "savings": [asdict(saving) for group in by_panel(curves).values() for saving in savings(group)],
        "all_labels": [asdict(each) for each in limits],
        "curves": [asdict(each) for each in curves],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    parser.add_argument("--test-split", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", help="all of the test split without it")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "densenet121"])
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--random-seeds", type=int, default=20, help="how many for random selection")
    parser.add_argument("--batch-size", type=int, default=20, help="labels until there is a new model")
    parser.add_argument("--cache", type=Path, help="folder that keeps features")
    parser.add_argument("--output", type=Path, default=RESULTS / "active.json")
    parser.add_argument("--figure", type=Path, default=RESULTS / "active.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    one_linear_algebra_thread()
    curves, limits = read(arguments.output, arguments)
    finished = {(curve.set_name, curve.backbone, curve.strategy) for curve in curves}
    limited = {(each.set_name, each.backbone) for each in limits}
    image_sets = read_image_sets(arguments.images, arguments.test_split, arguments.sets)
    for backbone, image_set in product(arguments.backbones, image_sets):
        wanted = [each for each in arguments.strategies if (image_set.name, backbone, each) not in finished]
        if not wanted and (image_set.name, backbone) in limited:
            continue
        weights = Pretrained.find(backbone, arguments.weights_dir).weights
        features = embedded(image_set, backbone, weights, arguments.cache)
        if (image_set.name, backbone) not in limited:
            limits.append(limit(features, arguments.seeds))
            write(arguments.output, arguments, curves, limits)
        for strategy in wanted:
            budgets = default_budgets(features.n_classes)
            batch_size = arguments.batch_size
            n_seeds = arguments.random_seeds if strategy == BASELINE else arguments.seeds
            curves.append(replay(features, strategy, budgets=budgets, batch_size=batch_size, n_seeds=n_seeds))
            write(arguments.output, arguments, curves, limits)
    for (set_name, backbone), group in by_panel(curves).items():
        output.print(f"\n{set_name}, {backbone}: accuracy in %")
        show(accuracy_rows(group), as_json=False)
        show(saving_rows(group), as_json=False)
        for each in limits:
            if (each.set_name, each.backbone) == (set_name, backbone):
                output.print(
                    f"all {each.n_labels} labels: {100 * each.accuracy:.1f} %, a mean of {each.n_test} test photos; "
                    f"others would have changed it by {100 * each.test_standard_error:.1f} points or so"
                )
    draw(curves, arguments.figure)


if __name__ == "__main__":
    main()
