"""The head of `benchmarks/ablation.py`, and the same with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.semi_supervised import LabelSpreading

from backend.promotion import targets_of
from benchmarks.frozen import DEFAULTS
from benchmarks.image_sets import Split
from benchmarks.learning_runs import FeatureMemory, Outcome, Stopwatch
from benchmarks.networks import Pretrained
from model import classifiers, discriminant, learning
from model.backbones import Backbone, load_backbone, with_network
from model.classifiers import fit_multi_label, fit_single_label
from model.discriminant import POOL_WEIGHT, Moments, fit_lda, fit_one_vs_rest_lda, moments_of, prior_of
from model.evaluation import Targets, evaluate
from model.features import Engine
from model.head import AnyFloats, FloatArray
from model.image_files import open_image
from model.learning import Examples, learn
from model.logits import LinearMap
from model.preprocessing import fit_preprocessing, principal_components
from model.transforms import InputSpec, to_views

Change = Callable[[Split], AbstractContextManager[object]]
"""Puts something else in the place of a part of the recipe, for one draw."""
Maps = dict[str, LinearMap]
NEIGHBOURS = 10
_COMBINE = classifiers._combinations


def replaced(owner: object, name: str, by: object) -> Change:
    """Return the change of one attribute of a module or class."""
    return lambda _: patch.object(owner, name, by)


def head(
    split: Split,
    pretrained: Pretrained,
    seed: int,
    device: str,
    memory: FeatureMemory,
    *,
    changes: Sequence[Change] = (),
    n_views: int = DEFAULTS.image_views,
    side: int | None = None,
    more_views: Callable[..., NDArray[np.uint8]] | None = None,
    with_pool: bool = True,
    all_blocks: bool = True,
) -> Outcome:
    """Learn a head as Tandem does but for the changes."""
    stopwatch = Stopwatch()
    train, pool, test = _features(split, pretrained, device, memory, n_views, side, more_views)
    sizes = _backbone(pretrained, DEFAULTS.image_views).block_sizes
    first = 0 if all_blocks else sum(sizes[:-1])
    schema = split.train.schema
    with ExitStack() as changed:
        for change in changes:
            changed.enter_context(change(split))
        learned = learn(
            Examples(
                features=train[:, first:],
                targets=targets_of(split.train.labelled, schema),
                digests=split.train.digests,
            ),
            schema.class_names,
            multiple=schema.multiple,
            block_sizes=sizes if all_blocks else sizes[-1:],
            pool=pool[:, first:] if with_pool else None,
            seed=seed,
        )
        cost, pool_wall_s = memory.settle(stopwatch.read(), split)
        truth = targets_of(split.test.labelled, schema)
        reports = [
            evaluate(each.predict_proba(test[:, first:]), truth, multiple=schema.multiple, thresholds=each.thresholds)
            for each in (learned.predictor, replace(learned.predictor, temperature=1.0))
        ]
    calibrated, uncalibrated = reports
    return Outcome.of(calibrated, cost, uncalibrated_ece=uncalibrated.ece, pool_wall_s=pool_wall_s, note=learned.method)


def spreading(split: Split, pretrained: Pretrained, seed: int, device: str, memory: FeatureMemory) -> Outcome:
    """Let scikit-learn's LabelSpreading say what the test part is, on the coordinates that heads are fitted in."""
    stopwatch = Stopwatch()
    train, pool, test = _features(split, pretrained, device, memory)
    schema = split.train.schema
    targets = targets_of(split.train.labelled, schema)
    weight = learning.earlier_block_weight(len(targets) / len(schema.class_names))
    sizes = _backbone(pretrained, DEFAULTS.image_views).block_sizes
    preprocessing = fit_preprocessing(np.concatenate([train, pool]), sizes, weight, seed)
    coordinates = [preprocessing.transform(rows) for rows in (train, pool, test)]
    probabilities = _spread(coordinates[0], targets, coordinates[1], len(schema.class_names), to=coordinates[2])
    cost, pool_wall_s = memory.settle(stopwatch.read(), split)
    report = evaluate(probabilities, targets_of(split.test.labelled, schema), multiple=schema.multiple)
    return Outcome.of(report, cost, pool_wall_s=pool_wall_s)


def _features(
    split: Split,
    pretrained: Pretrained,
    device: str,
    memory: FeatureMemory,
    n_views: int = DEFAULTS.image_views,
    side: int | None = None,
    more_views: Callable[..., NDArray[np.uint8]] | None = None,
) -> list[NDArray[np.float16]]:
    """Return the features of the training part, the pool and the test part, each (n, d): means over all views."""
    backbone = _backbone(pretrained, n_views, side)
    parts = []
    for paths in (split.train.paths, split.pool, split.test.paths):
        features = memory.recall(backbone.digest, paths, partial(_embed, backbone, device))
        if more_views is not None:
            embed = partial(_embed, backbone, device, views=more_views)
            more = memory.recall(f"{backbone.digest} {more_views.__name__}", paths, embed)
            features = ((features.astype(np.float32) + more) / 2).astype(np.float16)
        parts.append(features)
    return parts


@cache
def _backbone(pretrained: Pretrained, n_views: int, side: int | None = None) -> Backbone:
    """Load a backbone; with ``side`` it sees squares of so many pixels instead of those it was trained on."""
    backbone = load_backbone(pretrained.name, pretrained.weights, n_views=n_views)
    if side is None:
        return backbone
    spec = backbone.input_spec
    larger = replace(spec, crop_size=side, resize_size=round(spec.resize_size * side / spec.crop_size))
    return with_network(replace(backbone, input_spec=larger), backbone.network)


def _embed(
    backbone: Backbone, device: str, paths: Sequence[Path], views: Callable[..., NDArray[np.uint8]] = to_views
) -> NDArray[np.float16]:
    return Engine(backbone, device).embed(paths, max_pixels=DEFAULTS.max_image_pixels, views=views).features


def mirrored(source: Path, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(to_views(source, spec, max_pixels=max_pixels)[:, :, ::-1])


def two_corners(source: Path, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
    """Return the squares in the upper left and in the lower right corner, as large as the one in the centre."""
    with open_image(source, min_side=spec.resize_size, max_pixels=max_pixels) as image:
        side = min(image.size) * spec.crop_size / spec.resize_size
        boxes = [(0, 0, side, side), (image.width - side, image.height - side, image.width, image.height)]
        size = (spec.crop_size, spec.crop_size)
        return np.stack([np.asarray(image.resize(size, spec.resampling, box=box)) for box in boxes])


def _centred_on_labels(split: Split) -> AbstractContextManager[object]:
    """Let coordinates, their centre and their directions, come from the labelled images alone."""
    n_labels = len(split.train.paths)
    return patch.object(learning, "fit_preprocessing", lambda rows, *how: fit_preprocessing(rows[:n_labels], *how))


def _without_pseudo_labels(fit: Callable[..., Maps]) -> Callable[..., Maps]:
    return lambda coordinates, targets, moments, pool: fit(coordinates, targets, moments, pool[:0])


def _of_both(make: Callable[[Callable[..., Maps]], Callable[..., Maps]]) -> tuple[Change, Change]:
    """Change how heads for one class per image are fitted, and how those for several are."""
    return (
        replaced(learning, "fit_single_label", make(fit_single_label)),
        replaced(learning, "fit_multi_label", make(fit_multi_label)),
    )


def _chosen(choose: Callable[..., Maps]) -> Change:
    """Let ``choose`` say which methods there are, of those of the recipe and its parts."""

    def combinations(
        coordinates: FloatArray,
        moments: Moments,
        pool: FloatArray,
        discriminant: LinearMap,
        logistic: LinearMap,
        *,
        multiple: bool,
    ) -> Maps:
        recipe = _COMBINE(coordinates, moments, pool, discriminant, logistic, multiple=multiple)
        return choose({**recipe, "lda": discriminant, "logistic": logistic, "prototype": _prototypes(moments)})

    return replaced(classifiers, "_combinations", combinations)


def _lda_for_logistic(
    coordinates: FloatArray, moments: Moments, pool: FloatArray, lda: LinearMap, _: LinearMap, *, multiple: bool
) -> Maps:
    return _COMBINE(coordinates, moments, pool, lda, lda, multiple=multiple)


def _only(*names: str) -> Change:
    return _chosen(lambda maps: {name: maps[name] for name in names})


def _prototypes(moments: Moments) -> LinearMap:
    """Return cosines with the mean of each class; rows are centred on the mean of all images already."""
    means = moments.class_sums / moments.class_totals[:, None]
    lengths = np.maximum(np.linalg.norm(means, axis=1), np.finfo(np.float32).tiny)
    weight = (means / lengths[:, None]).T.astype(np.float32)
    return LinearMap(weight=weight, bias=np.zeros(weight.shape[1], np.float32))


def _spread(coordinates: FloatArray, targets: Targets, pool: FloatArray, n_classes: int, to: FloatArray) -> FloatArray:
    """Return the probabilities, (n, k), that label spreading over labelled images and pool gives to other rows."""
    if targets.ndim == 2:
        columns = [_spread(coordinates, column.astype(np.intp), pool, 2, to)[:, 1] for column in targets.T]
        return np.column_stack(columns)
    model = LabelSpreading(kernel="knn", n_neighbors=NEIGHBOURS, alpha=0.5, max_iter=200)
    model.fit(np.concatenate([coordinates, pool]), np.concatenate([targets, np.full(len(pool), -1)]))
    probabilities = np.full((len(to), n_classes), 0.0, np.float32)
    probabilities[:, model.classes_] = np.nan_to_num(model.predict_proba(to))
    return probabilities


def _with_spreading(fit: Callable[..., Maps]) -> Callable[..., Maps]:
    """Let label spreading say once what the pool is, instead of rounds of pseudo-labels."""

    def fitted(coordinates: FloatArray, targets: Targets, moments: Moments, pool: FloatArray) -> Maps:
        maps = fit(coordinates, targets, moments, pool)
        multiple, counts = targets.ndim == 2, moments.class_totals
        if counts.min() == 0 or (multiple and counts.max() == moments.total):
            return maps
        guess = _spread(coordinates, targets, pool, len(counts), to=pool)
        weights = POOL_WEIGHT * discriminant._certainty(guess, multiple=multiple)
        fit_helped = fit_one_vs_rest_lda if multiple else fit_lda
        prior = prior_of(moments, multiple=multiple)
        return {**maps, "pool": fit_helped(moments + moments_of(pool, guess, weights), prior)}

    return fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """Stands in for ``model.head.Head``: takes feature rows as they are."""

    centre: FloatArray
    weight: FloatArray
    bias: FloatArray

    def logits(self, features: AnyFloats) -> FloatArray:
        return (features.astype(np.float32) - self.centre) @ self.weight + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standardised:
    """Stands in for ``model.preprocessing.Preprocessing``: every feature to mean 0, variance 1 over its block."""

    centre: FloatArray
    components: FloatArray

    @classmethod
    def fit(cls, rows: AnyFloats, block_sizes: tuple[int, ...], earlier_weight: float, _: int) -> _Standardised:
        wide = rows.astype(np.float32)
        centre, deviation = wide.mean(axis=0), np.maximum(wide.std(axis=0), 1e-6)
        weights = np.repeat([earlier_weight] * (len(block_sizes) - 1) + [1.0], block_sizes)
        # As long in the mean, block by block, as the rows of the recipe: penalties mean the same.
        scale = (weights / np.sqrt(np.repeat(block_sizes, block_sizes)) / deviation).astype(np.float32)
        return cls(centre=centre, components=principal_components((wide - centre) * scale) * scale[:, None])

    def transform(self, features: AnyFloats) -> FloatArray:
        return self.head(np.eye(self.components.shape[1]), np.zeros(1, np.float32)).logits(features)

    def head(self, weight: NDArray[Any], bias: FloatArray) -> _Affine:
        return _Affine(centre=self.centre, weight=(self.components @ weight).astype(np.float32), bias=bias)


HEADS: dict[str, Callable[..., Outcome]] = {
    "head": head,
    "head without pool": partial(head, with_pool=False),
    "head not centred on pool": partial(head, changes=(_centred_on_labels,)),
    "head without pseudo-labels": partial(head, changes=_of_both(_without_pseudo_labels)),
    "head with label spreading": partial(head, changes=_of_both(_with_spreading)),
    "label spreading itself": spreading,
    "LDA": partial(head, changes=(_only("lda"),)),
    "logistic regression": partial(head, changes=(_only("logistic"),)),
    "head without logistic regression": partial(
        head, changes=(replaced(classifiers, "_combinations", _lda_for_logistic),)
    ),
    "nearest prototype": partial(head, changes=(_only("prototype"),)),
    "head with pool, unasked": partial(head, changes=(_only("pool"),)),
    "head, more to choose from": partial(head, changes=(_only("pool", "labelled", "lda", "logistic", "prototype"),)),
    "head without pool, more to choose from": partial(
        head, with_pool=False, changes=(_only("labelled", "lda", "logistic", "prototype"),)
    ),
    "head on standardised features": partial(
        head, changes=(replaced(learning, "fit_preprocessing", _Standardised.fit),)
    ),
    "head on last block": partial(head, all_blocks=False),
    "head on blocks of equal weight": partial(
        head, changes=(replaced(learning, "earlier_block_weight", lambda _: 1.0),)
    ),
    "head on one view": partial(head, n_views=1),
    "head at 288 pixels": partial(head, side=288),
    "head on mirrored views too": partial(head, more_views=mirrored),
    "head on corners too": partial(head, more_views=two_corners),
}
"""How each variant is learned, by its name; the first one is the recipe."""
