"""Labels and features become a calibrated predictor, judged on images that it was not fitted on.

The flow: preprocessing of all images → folds by image content, near-duplicates together → every method fitted without
each fold → the method that does best out of fold → that method on all labels → temperature, what the pretrained
classifier has to say, thresholds, reports.

Shapes: n images with a label, m without, d features, p dimensions, k classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from model.calibration import TYPICAL_TEMPERATURE, final_temperature, fit_temperature
from model.classifiers import fit_multi_label, fit_single_label
from model.conformal import cross_fitted_report, fit_conformal
from model.discriminant import moments_of
from model.duplicates import NONE_ALIKE, most_alike
from model.evaluation import Targets, evaluate, log_losses
from model.folds import N_FOLDS, NetworkSplit, first_digests, fold_of
from model.head import AnyFloats, FloatArray
from model.inference import Predictor
from model.learned import Learned, OutOfFold
from model.logits import LinearMap, calibrated
from model.opinion import Opinion, fit_share, pooled_with
from model.preprocessing import earlier_block_weight, fit_preprocessing
from model.sampling import drawn_by_content
from model.thresholds import fit_thresholds

__all__ = ["N_FOLDS", "Examples", "Learned", "OutOfFold", "TooFewLabels", "fold_of", "learn"]

MAX_POOL_IMAGES = 2000
MAX_LABELLED_IMAGES = 20_000
"""More labels are thinned out, the largest classes first: by then a linear head has long learned what it can."""
NEVER_HELD_OUT = -1
STANDARD_ERRORS_TO_CHANGE = 2.0
"""By how many a method must be better than the one to expect most of."""


class TooFewLabels(Exception):
    """There is nothing to tell apart yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Labelled images.

    Attributes:
        features: (n, d), float16 or wider.
        targets: class indices, (n,), or booleans, (n, k), where an image may have several classes.
        digests: of the images' content; they decide the fold, see ``model.folds``.
        split: which images may judge, where the backbone was fine-tuned; all of them where it was not.
    """

    features: AnyFloats
    targets: Targets
    digests: tuple[str, ...]
    split: NetworkSplit | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        lengths = (len(self.features), len(self.targets), len(self.digests))
        if len(set(lengths)) != 1:
            raise ValueError(f"features, targets and digests have {lengths} rows: they must be the same images")
        if not np.isfinite(self.features).all():
            raise ValueError("features hold values that are not finite: embed these images again")

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which images may judge, (n,)."""
        return np.array([self.split is None or digest in self.split.held_out for digest in self.digests], np.bool_)

    def thinned(self, n_images: int) -> Examples:
        """Return at most ``n_images`` of them, by their digests, so that rare classes keep all and the same stay.

        Where an image may have several classes, its rarest one counts.
        """
        if len(self.targets) <= n_images:
            return self
        classes = self.targets if self.targets.ndim == 1 else _rarest_class(self.targets)
        order = np.lexsort([np.array(self.digests), classes])
        counts = np.bincount(classes)
        turns = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = np.sort(order[np.argsort(turns, kind="stable")[:n_images]])
        return replace(
            self,
            features=self.features[kept],
            targets=self.targets[kept],
            digests=tuple(self.digests[row] for row in kept),
        )


def learn(
    examples: Examples,
    class_names: tuple[str, ...],
    *,
    multiple: bool,
    block_sizes: tuple[int, ...],
    pool: AnyFloats | None = None,
    opinion: Opinion | None = None,
    seed: int = 0,
) -> Learned:
    """Learn a calibrated predictor.

    Args:
        examples: the labelled images.
        class_names: names of the k classes, in the order of the targets.
        multiple: whether an image may have several classes.
        block_sizes: how a feature row is composed; the last block is the penultimate features.
        pool: features of images without a label, (m, d); at most ``MAX_POOL_IMAGES`` random ones are used.
        opinion: what the backbone was pretrained to say of the classes, where each image has one.
        seed: decides what is random; the same arguments give the same result.

    Raises:
        TooFewLabels: no label, or labels of one class only where each image has one.
        ValueError: shapes or values that cannot be.
    """
    started_s = time.perf_counter()
    _check(examples, class_names, multiple, opinion)
    examples = examples.thinned(MAX_LABELLED_IMAGES)
    if pool is None:
        pool = np.empty((0, examples.features.shape[1]), np.float16)
    if len(pool) > MAX_POOL_IMAGES:
        pool = pool[np.sort(drawn_by_content(pool, MAX_POOL_IMAGES, seed))]
    preprocessing = fit_preprocessing(
        np.concatenate([examples.features, pool]),
        block_sizes,
        earlier_block_weight(len(examples.targets) / len(class_names)),
        seed,
    )
    memberships = examples.targets if multiple else examples.targets[:, None] == np.arange(len(class_names))
    coordinates = preprocessing.transform(examples.features)
    problem = _Problem(
        coordinates=coordinates,
        targets=examples.targets,
        memberships=memberships.astype(np.float32),
        folds=_folds(examples, coordinates),
        pool=preprocessing.transform(pool),
    )
    judged = np.flatnonzero(examples.judged)
    targets, folds = problem.targets[judged], problem.folds[judged]
    fitted = problem.fit()
    method, chosen = _choose(*_out_of_fold_logits(problem, tuple(fitted), judged), targets, folds)
    linear_map = fitted[method]
    scale = linear_map.spread(problem.coordinates) or 1.0
    expected = None if chosen.any() else TYPICAL_TEMPERATURE / scale
    labels_per_image = len(examples.targets) / max(1, len(judged))
    fitted_temperature = fit_temperature(chosen, targets, expected, labels_per_image=labels_per_image)
    final_share = final_temperature(1.0, len(judged))
    temperature = scale * final_share * fitted_temperature
    probabilities = _cross_fitted(chosen, targets, folds, labels_per_image)
    # Prediction sets are made of probabilities as sure as those that are served, and so have to be their thresholds.
    served = _cross_fitted(chosen, targets, folds, labels_per_image, final_share)
    share = 0.0
    if opinion is not None:
        opinions = opinion.log_probabilities(examples.features[judged])
        share = fit_share(probabilities, opinions, targets)
        probabilities = _cross_pooled(probabilities, opinions, targets, folds)
        served = _cross_pooled(served, opinions, targets, folds)
    thresholds = fit_thresholds(probabilities, targets.astype(np.bool_)) if multiple else None
    predictor = Predictor(
        class_names=class_names,
        multiple=multiple,
        head=preprocessing.head(linear_map.weight, linear_map.bias),
        temperature=temperature,
        thresholds=thresholds,
        conformal=fit_conformal(served, targets),
        opinion=opinion,
        opinion_share=share,
    )
    return Learned(
        predictor=predictor,
        method=method,
        candidates=tuple(fitted),
        seed=seed,
        uncalibrated=evaluate(calibrated(chosen, 1 / scale, multiple=multiple), targets, multiple=multiple),
        calibrated=evaluate(probabilities, targets, multiple=multiple, thresholds=thresholds),
        conformal=cross_fitted_report(served, targets, folds),
        out_of_fold=OutOfFold(digests=tuple(examples.digests[index] for index in judged), probabilities=probabilities),
        seconds=time.perf_counter() - started_s,
    )


class _Problem:
    """Everything in the few dimensions that classifiers are fitted in; sums over the images of each fold are kept."""

    def __init__(
        self,
        *,
        coordinates: FloatArray,
        targets: Targets,
        memberships: FloatArray,
        folds: NDArray[np.intp],
        pool: FloatArray,
    ) -> None:
        self.coordinates = coordinates
        self.targets = targets
        self.folds = folds
        self.pool = pool
        self.n_classes = memberships.shape[1]
        self._moments_of_fold = {
            int(fold): moments_of(coordinates[folds == fold], memberships[folds == fold]) for fold in np.unique(folds)
        }
        self._moments = reduce(add, self._moments_of_fold.values())

    def fit(self, *, held_out: int | None = None) -> dict[str, LinearMap]:
        """Fit each method on all labelled images but those of a fold."""
        taught = self.folds != held_out
        moments = self._moments if held_out is None else self._moments - self._moments_of_fold[held_out]
        coordinates, targets = self.coordinates[taught], self.targets[taught]
        if targets.ndim == 2:
            return fit_multi_label(coordinates, targets.astype(np.bool_), moments, self.pool)
        return fit_single_label(coordinates, targets.astype(np.intp), moments, self.pool)


def _check(examples: Examples, class_names: tuple[str, ...], multiple: bool, opinion: Opinion | None) -> None:
    targets, n_classes = examples.targets, len(class_names)
    if opinion is not None and (multiple or len(opinion.groups) != n_classes):
        raise ValueError(f"an opinion of {len(opinion.groups)} classes does not fit {n_classes}, one per image")
    if len(targets) == 0:
        raise TooFewLabels("there is no labelled image to learn from")
    if multiple:
        if targets.shape[1:] != (n_classes,):
            raise ValueError(f"targets of shape {targets.shape} do not fit {n_classes} classes, several per image")
        return
    if targets.ndim != 1 or targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets of shape {targets.shape} are not indices of {n_classes} classes")
    if len(np.unique(targets)) < 2:
        raise TooFewLabels(f"all labels are {class_names[int(targets[0])]!r}: label an image of another class")


def _rarest_class(memberships: Targets) -> NDArray[np.intp]:
    """Return for each image its class that the fewest images have, (n,), and k where it has none."""
    n_classes = memberships.shape[1]
    sizes = np.where(memberships, memberships.sum(axis=0), len(memberships) + 1)
    return np.where(memberships.any(axis=1), sizes.argmin(axis=1), n_classes)


def _folds(examples: Examples, coordinates: FloatArray) -> NDArray[np.intp]:
    """Return the fold of each image, (n,), near-duplicates together, and ``NEVER_HELD_OUT`` where none is needed.

    Where the backbone was fine-tuned, those that may judge are a whole fold of ``fold_of``: they are split by another
    hash; and near-duplicates are those that were found on pretrained features, which its own do not tell. Its own do
    tell which of the judges an image that came later may be the double of: it does not teach where that one judges.
    """
    if examples.split is None:
        first = first_digests(examples.digests, coordinates, examples.targets)
        return np.array([fold_of(digest) for digest in first], np.intp)
    seen, held_out = examples.split.seen, examples.split.held_out
    judged = np.flatnonzero(examples.judged)
    later = np.array([digest not in seen and digest not in held_out for digest in examples.digests], np.bool_)
    folds = np.full(len(examples.targets), NEVER_HELD_OUT)
    folds[judged] = [fold_of(f"{held_out[examples.digests[row]]} among judged") for row in judged]
    if len(judged):
        rows = most_alike(coordinates[later], coordinates[judged])
        folds[later] = np.where(rows == NONE_ALIKE, NEVER_HELD_OUT, folds[judged[rows]])
    return folds


def _out_of_fold_logits(
    problem: _Problem, methods: tuple[str, ...], judged: NDArray[np.intp]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return each method's logits, (n judged, k), of the judged images, fitted without their fold, and their scales.

    The scale of the head that an image's logits are of, (n judged, 1), says how sure that head is of everything.
    """
    coordinates, folds = problem.coordinates[judged], problem.folds[judged]
    shape = (len(judged), problem.n_classes)
    logits: dict[str, FloatArray] = {method: np.zeros(shape, np.float32) for method in methods}
    scales: dict[str, FloatArray] = {method: np.ones((len(judged), 1), np.float32) for method in methods}
    for fold in np.unique(folds):
        for method, linear_map in problem.fit(held_out=int(fold)).items():
            if method in logits:
                logits[method][folds == fold] = linear_map.logits(coordinates[folds == fold])
                scales[method][folds == fold] = linear_map.spread(problem.coordinates) or 1.0
    return logits, scales


def _choose(
    logits: dict[str, FloatArray], scales: dict[str, FloatArray], targets: Targets, folds: NDArray[np.intp]
) -> tuple[str, FloatArray]:
    """Return the best method, and out-of-fold logits of the choice in units of the scale of each head.

    In such units heads agree. A wrong label makes all those doubt that are fitted with it: the one without it, whose
    fold it is in, would by its own logits be surest of all of just this image.

    For each fold the choice is made on the other folds, so that the logits are those of an honest choice.
    """
    honest = np.empty_like(next(iter(logits.values())))
    for fold in np.unique(folds):
        here = folds == fold
        method = _best({name: _losses(each[~here], targets[~here]) for name, each in logits.items()})
        honest[here] = logits[method][here] / scales[method][here]
    return _best({name: _losses(each, targets) for name, each in logits.items()}), honest


def _losses(logits: FloatArray, targets: Targets) -> NDArray[np.float64]:
    """Return the log loss of each image, (n,), at the best temperature near the one that is expected of all methods.

    A method that is misled, and for that all too sure, must not be forgiven it.
    """
    temperature = fit_temperature(logits, targets, TYPICAL_TEMPERATURE)
    return log_losses(calibrated(logits, temperature, multiple=targets.ndim == 2), targets)


def _best(losses: dict[str, NDArray[np.float64]]) -> str:
    """Return the first method, or the one with the lowest loss where that is clearly lower.

    An estimate from a few dozen images errs, so the lowest alone should not decide (Breiman et al., "Classification
    and Regression Trees", 1984). Choosing by one standard error was worse on photos than no choice at all; two leave
    the protection from a pool that misleads.
    """
    first = next(iter(losses))
    if len(losses[first]) == 0:
        return first
    lowest = min(losses, key=lambda method: float(losses[method].mean()))
    excess = losses[first] - losses[lowest]
    return lowest if excess.mean() > STANDARD_ERRORS_TO_CHANGE * excess.std() / np.sqrt(len(excess)) else first


def _cross_fitted(
    logits: FloatArray, targets: Targets, folds: NDArray[np.intp], labels_per_image: float, share: float = 1.0
) -> FloatArray:
    """Return probabilities, each with a share of the temperature fitted on the other folds."""
    probabilities = np.empty_like(logits)
    for fold in np.unique(folds):
        here = folds == fold
        temperature = fit_temperature(logits[~here], targets[~here], labels_per_image=labels_per_image)
        probabilities[here] = calibrated(logits[here], share * temperature, multiple=targets.ndim == 2)
    return probabilities


def _cross_pooled(
    probabilities: FloatArray, opinions: FloatArray, targets: Targets, folds: NDArray[np.intp]
) -> FloatArray:
    """Return probabilities pooled with an opinion, whose share was fitted on the other folds for each."""
    pooled = np.empty_like(probabilities)
    for fold in np.unique(folds):
        here = folds == fold
        share = fit_share(probabilities[~here], opinions[~here], targets[~here])
        pooled[here] = np.exp(pooled_with(np.log(probabilities[here]), opinions[here], share))
    return pooled
