"""How many planted copies and strangers are found among photos of one's own, and what else is taken for such.

    python -m benchmarks.planted --images DIR --weights-dir DIR --test-split FILE

Images, weights and test split are those of `benchmarks/active.py`. Copies: photos of a set, each changed in one way and
put beside the originals (`model.duplicates`). Strangers: a few photos of each other set (`model.outliers`). What else
is called a near-duplicate may well be one, but not where the two photos have different labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from backend.processes import one_linear_algebra_thread
from backend.terminal import show
from benchmarks.active import MAX_PIXELS, RESULTS, embedded
from benchmarks.described import described
from benchmarks.frozen import DEFAULTS
from benchmarks.image_sets import ImageSet, read_image_sets
from benchmarks.networks import Pretrained, read_rgb
from model.backbones import load_backbone
from model.duplicates import near_duplicates
from model.features import Engine
from model.head import AnyFloats
from model.outliers import outliers
from model.simulation import LabelledSet

Change = Callable[[Image.Image], Image.Image]


def shrunk(image: Image.Image) -> Image.Image:
    return image.resize((round(0.8 * image.width), round(0.8 * image.height)))


def brightened(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.05)


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 50, height // 50, width - width // 50, height - height // 50))


CHANGES: dict[str, tuple[Change, int]] = {
    "saved at quality 60": (lambda image: image, 60),
    "shrunk to 0.8": (shrunk, 95),
    "5 % brighter": (brightened, 95),
    "cropped by 2 %": (cropped, 95),
}
"""What is done to a photo, and the JPEG quality it is saved at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was planted, how much of it was found, and what else was: in all, and certainly wrong.

    For copies the others are pairs of photos, and wrong with different labels. For strangers, drawn several times, they
    are photos of the set itself while nothing is planted, and all of them count as wrong.
    """

    set_name: str
    backbone: str
    planted: str
    n_planted: int
    n_found: int
    n_others: int
    n_wrong: int


def features_of(labelled: LabelledSet) -> AnyFloats:
    return np.concatenate([labelled.images.features, labelled.test_images.features])


def copies(image_set: ImageSet, labelled: LabelledSet, engine: Engine, n_copies: int) -> Iterator[Row]:
    originals = features_of(labelled)
    targets = np.concatenate([labelled.images.targets, labelled.test_images.targets])
    paths = [*image_set.pool.paths, *image_set.test.paths]
    rows = np.random.default_rng(0).choice(len(paths), n_copies, replace=False)
    for name, (change, quality) in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{row}.jpg" for row in rows]
            for row, file in zip(rows, files, strict=True):
                change(read_rgb(paths[row])).save(file, quality=quality)
            changed = engine.embed(files, max_pixels=MAX_PIXELS).features
        copied_from = dict(enumerate(rows.tolist(), start=len(originals)))
        groups = near_duplicates(np.concatenate([originals, changed]), labelled.block_sizes)
        pairs = {pair for group in groups for pair in combinations(sorted(group.tolist()), 2)}
        others = [(first, second) for first, second in pairs if second < len(originals)]
        yield Row(
            set_name=labelled.name,
            backbone=labelled.backbone,
            planted=name,
            n_planted=n_copies,
            n_found=sum((original, copy) in pairs for copy, original in copied_from.items()),
            n_others=len(others),
            n_wrong=sum(bool(np.any(targets[first] != targets[second])) for first, second in others),
        )


def strangers(labelled: LabelledSet, other_sets: Sequence[LabelledSet], n_each: int, n_draws: int) -> Row:
    at_home = features_of(labelled)
    random = np.random.default_rng(0)
    n_found = 0
    for _ in range(n_draws):
        foreign = [random.permutation(features_of(each))[:n_each] for each in other_sets]
        found = outliers(np.concatenate([at_home, *foreign]), labelled.block_sizes).rows
        n_found += int((found >= len(at_home)).sum())
    n_others = len(outliers(at_home, labelled.block_sizes).rows)
    return Row(
        set_name=labelled.name,
        backbone=labelled.backbone,
        planted="strangers",
        n_planted=n_each * len(other_sets) * n_draws,
        n_found=n_found,
        n_others=n_others,
        n_wrong=n_others,
    )


def cells(row: Row) -> dict[str, str]:
    return {
        "set": row.set_name,
        "backbone": row.backbone,
        "planted": row.planted,
        "found": f"{row.n_found} of {row.n_planted}",
        "others": str(row.n_others),
        "wrong": str(row.n_wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    parser.add_argument("--test-split", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "densenet121"])
    parser.add_argument("--copies", type=int, default=50, help="photos of each set")
    parser.add_argument("--strangers", type=int, default=5, help="photos of each other set")
    parser.add_argument("--draws", type=int, default=10, help="how often strangers are drawn")
    parser.add_argument("--cache", type=Path, help="folder that keeps features")
    parser.add_argument("--output", type=Path, default=RESULTS / "planted.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    one_linear_algebra_thread()
    image_sets = read_image_sets(arguments.images, arguments.test_split, None)
    rows = []
    for backbone in arguments.backbones:
        weights = Pretrained.find(backbone, arguments.weights_dir).weights
        engine = Engine(load_backbone(backbone, weights, n_views=DEFAULTS.image_views))
        labelled_sets = [embedded(each, backbone, weights, arguments.cache) for each in image_sets]
        for image_set, labelled in zip(image_sets, labelled_sets, strict=True):
            rows.extend(copies(image_set, labelled, engine, arguments.copies))
            others = [each for each in labelled_sets if each is not labelled]
            rows.append(strangers(labelled, others, arguments.strangers, arguments.draws))
    show([cells(row) for row in rows], as_json=False)
    report = {
        **described("numpy", "scipy", "torch", "torchvision", "openvino"),
        "rows": [asdict(row) for row in rows],
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
