"""What labels would have brought: the loop of asking, labelling and learning, replayed on images with known labels.

Shapes: n images that may be asked, t test images, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.evaluation import Targets, evaluate
from model.head import AnyFloats, FloatArray
from model.inference import Predictor
from model.learning import Examples, TooFewLabels, learn
from model.query import Pool, score


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Images whose labels are known: ``features``, (n, d), and ``targets``, class indices or booleans (n, k)."""

    features: AnyFloats
    targets: Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The model at one budget: accuracy and macro-F1 on the test images, from 0 to 1."""

    n_labels: int
    accuracy: float
    macro_f1: float


def simulate(
    images: Images,
    test_images: Images,
    *,
    n_classes: int,
    block_sizes: tuple[int, ...],
    strategy: str,
    budgets: Sequence[int],
    batch_size: int,
    seed: int,
) -> Iterator[Round]:
    """Ask by a strategy, label as the targets say, learn, and judge on the test images.

    Args:
        images: start without labels; those not yet asked are the pool that learning is helped by.
        test_images: never asked, never in the pool.
        n_classes: k.
        block_sizes: how a feature row is composed.
        strategy: a name in ``model.query.STRATEGIES``.
        budgets: numbers of labels, ascending, at which to judge; those above n are left out.
        batch_size: most labels given before the model is learned anew and asks again; for ``random`` all up to the
            next budget.
        seed: decides what is random.
    """
    class_names = tuple(f"class {number}" for number in range(n_classes))
    multiple = images.targets.ndim == 2
    asked: list[int] = []
    predictor: Predictor | None = None
    for budget in budgets:
        if budget > len(images.targets):
            return
        while len(asked) < budget:
            remaining = np.setdiff1d(np.arange(len(images.targets)), asked)
            # What is drawn at random does not depend on what was learned.
            size = budget - len(asked) if strategy == "random" else min(batch_size, budget - len(asked))
            pool = Pool(
                features=images.features[remaining],
                probabilities=None if predictor is None else predictor.predict_proba(images.features[remaining]),
                labelled_features=images.features[asked],
                labelled_targets=images.targets[asked],
                multiple=multiple,
                block_sizes=block_sizes,
            )
            values = score(strategy, pool, batch_size=size, seed=seed * 100_003 + len(asked)).values
            asked.extend(remaining[np.argsort(-values)[:size]].tolist())
            predictor = _learned(images, asked, class_names, multiple, block_sizes, seed)
        probabilities = _probabilities(predictor, test_images, images.targets[asked], n_classes)
        thresholds = predictor.thresholds if predictor is not None else None
        report = evaluate(probabilities, test_images.targets, multiple=multiple, thresholds=thresholds)
        yield Round(n_labels=budget, accuracy=report.accuracy, macro_f1=report.macro_f1)


def _learned(
    images: Images,
    asked: list[int],
    class_names: tuple[str, ...],
    multiple: bool,
    block_sizes: tuple[int, ...],
    seed: int,
) -> Predictor | None:
    examples = Examples(
        features=images.features[asked],
        targets=images.targets[asked],
        digests=tuple(f"{seed} {index}" for index in asked),
        judged=np.ones(len(asked), np.bool_),
    )
    pool = np.delete(images.features, asked, axis=0)
    try:
        return learn(examples, class_names, multiple=multiple, block_sizes=block_sizes, pool=pool, seed=seed).predictor
    except TooFewLabels:
        return None


def _probabilities(predictor: Predictor | None, images: Images, known: Targets, n_classes: int) -> FloatArray:
    """Return probabilities, (t, k): while there is only one class, it is taken for certain."""
    if predictor is not None:
        return predictor.predict_proba(images.features)
    certain = np.bincount(known.astype(np.intp), minlength=n_classes) > 0
    return np.tile(certain.astype(np.float32), (len(images.features), 1))
