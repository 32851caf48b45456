"""What labels would have brought: the loop of asking, labelling and learning, replayed on images with known labels.

Shapes: n images that may be asked, t test images, d features, k classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.evaluation import Targets, evaluate
from model.head import AnyFloats
from model.inference import Predictor
from model.learning import Examples, TooFewLabels, learn
from model.opinion import Opinion
from model.query import Pool, score

LABELS_PER_CLASS = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledSet:
    """A set of images whose labels are known, as a backbone sees them; ``test_images`` are never asked."""

    name: str
    backbone: str
    images: Images
    test_images: Images
    n_classes: int
    block_sizes: tuple[int, ...]
    opinion: Opinion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How well a strategy does by number of labels, on one set of images and one backbone.

    ``accuracy`` and ``macro_f1`` on the test images, from 0 to 1, have a row for each seed and a column for each of
    ``n_labels``; ``seconds`` is what the replay of one seed took, the median.
    """

    set_name: str
    backbone: str
    strategy: str
    n_labels: Sequence[int]
    accuracy: Sequence[Sequence[float]]
    macro_f1: Sequence[Sequence[float]]
    seconds: float


def default_budgets(n_classes: int) -> tuple[int, ...]:
    """Return the numbers of labels at which strategies are compared: ``LABELS_PER_CLASS``."""
    return tuple(number * n_classes for number in LABELS_PER_CLASS)


def replay(
    labelled: LabelledSet,
    strategy: str,
    *,
    budgets: Sequence[int],
    batch_size: int,
    n_seeds: int,
    on_round: Callable[[int, int], None] = lambda _seed, _n_labels: None,
) -> Curve:
    """Replay the loop for each of the seeds 0 to ``n_seeds`` - 1; for the other arguments see ``simulate``.

    ``on_round`` is called with the seed and the number of labels, at the start of each replay and after each budget.
    """
    replays: list[list[Round]] = []
    seconds = []
    for seed in range(n_seeds):
        started_s = time.perf_counter()
        on_round(seed, 0)
        replays.append([])
        for each in simulate(
            labelled.images,
            labelled.test_images,
            n_classes=labelled.n_classes,
            block_sizes=labelled.block_sizes,
            opinion=labelled.opinion,
            strategy=strategy,
            budgets=budgets,
            batch_size=batch_size,
            seed=seed,
        ):
            replays[-1].append(each)
            on_round(seed, each.n_labels)
        seconds.append(time.perf_counter() - started_s)
    return Curve(
        set_name=labelled.name,
        backbone=labelled.backbone,
        strategy=strategy,
        n_labels=[each.n_labels for each in replays[0]],
        accuracy=[[round(each.accuracy, 4) for each in rounds] for rounds in replays],
        macro_f1=[[round(each.macro_f1, 4) for each in rounds] for rounds in replays],
        seconds=round(statistics.median(seconds), 1),
    )


def simulate(
    images: Images,
    test_images: Images,
    *,
    n_classes: int,
    block_sizes: tuple[int, ...],
    opinion: Opinion | None = None,
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
        opinion: what the backbone was pretrained to say of the classes.
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
            predictor = _learned(images, asked, class_names, block_sizes, opinion, seed)
        probabilities = _probabilities(predictor, test_images, images.targets[asked], n_classes)
        thresholds = predictor.thresholds if predictor is not None else None
        report = evaluate(probabilities, test_images.targets, multiple=multiple, thresholds=thresholds)
        yield Round(n_labels=budget, accuracy=report.accuracy, macro_f1=report.macro_f1)


def _learned(
    images: Images,
    asked: list[int],
    class_names: tuple[str, ...],
    block_sizes: tuple[int, ...],
    opinion: Opinion | None,
    seed: int,
) -> Predictor | None:
    examples = Examples(
        features=images.features[asked],
        targets=images.targets[asked],
        digests=tuple(f"{seed} {index}" for index in asked),
    )
    pool = np.delete(images.features, asked, axis=0)
    try:
        learned = learn(
            examples,
            class_names,
            multiple=images.targets.ndim == 2,
            block_sizes=block_sizes,
            pool=pool,
            opinion=opinion,
            seed=seed,
        )
    except TooFewLabels:
        return None
    return learned.predictor


def _probabilities(predictor: Predictor | None, images: Images, known: Targets, n_classes: int) -> AnyFloats:
    """Return probabilities, (t, k): while there is only one class, it is taken for certain."""
    if predictor is not None:
        return predictor.predict_proba(images.features)
    certain = np.bincount(known.astype(np.intp), minlength=n_classes) > 0
    return np.tile(certain.astype(np.float32), (len(images.features), 1))
