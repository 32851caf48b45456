"""From features to calibrated probabilities and suggestions; numpy only, cheap, safe to share between threads.

Shapes: n images, d features, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.conformal import NOTHING_RULED_OUT, Conformal
from model.head import AnyFloats, Head
from model.logits import calibrated
from model.opinion import Opinion, pooled_with


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggested:
    """What to suggest for one image; ``score``, 0 to 1, is the probability that all of it is right."""

    class_names: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictor:
    """A learned head with what makes its logits probabilities and its probabilities decisions.

    ``thresholds`` has one probability per class, from which on the class is suggested, where an image may have
    several classes (``multiple``), and is ``None`` otherwise. ``conformal`` has the thresholds of prediction sets.
    ``opinion`` is what the backbone was pretrained to say of the classes, if anything, and ``opinion_share``, 0 to 1,
    how much it counts against the head.
    ``backbone_digest`` names the backbone whose features it needs; empty until the predictor is saved.
    """

    class_names: tuple[str, ...]
    multiple: bool
    head: Head
    temperature: float
    thresholds: tuple[float, ...] | None = None
    conformal: Conformal = NOTHING_RULED_OUT
    opinion: Opinion | None = None
    opinion_share: float = 0.0
    backbone_digest: str = ""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        n_classes = len(self.head.bias)
        if len(self.class_names) != n_classes or len(set(self.class_names)) != n_classes:
            raise ValueError(f"{len(self.class_names)} class names do not fit a head with {n_classes} classes")
        if self.multiple and (self.thresholds is None or len(self.thresholds) != n_classes):
            raise ValueError(f"several classes per image need a threshold for each of the {n_classes} classes")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a temperature is above zero, not {self.temperature}")
        if self.opinion is not None and (self.multiple or len(self.opinion.groups) != n_classes):
            raise ValueError(
                f"an opinion of {len(self.opinion.groups)} classes does not fit {n_classes}, one per image"
            )
        if not 0 <= self.opinion_share <= 1:
            raise ValueError(f"the share of an opinion is from 0 to 1, not {self.opinion_share}")
        for thresholds in (self.conformal.possible_from, self.conformal.certain_above):
            if thresholds is not None and len(thresholds) not in (1, n_classes):
                raise ValueError(f"{len(thresholds)} thresholds of prediction sets do not fit {n_classes} classes")

    def predict_proba(self, features: AnyFloats) -> NDArray[np.float64]:
        """Return calibrated probabilities, (n, k), of feature rows, (n, d).

        Rows sum to 1 unless ``multiple``; then each class's probability stands by itself. They are that precise so
        that those near 1 can still be told apart: what is labelled next is chosen by their order.
        """
        return calibrated(self._logits(features), 1.0, multiple=self.multiple)

    def prediction_sets(self, features: AnyFloats) -> NDArray[np.bool_]:
        """Return which classes each image may have, (n, k), by feature rows, (n, d): see ``model.conformal``."""
        return self.conformal.prediction_set(self.predict_proba(features))

    def suggest(self, features: AnyFloats, allowed: Sequence[str] | None = None) -> list[Suggested]:
        """Return a suggestion for each feature row, (n, d).

        Only classes in ``allowed`` are suggested: those still in the label config; all without it. With one class
        per image the probabilities are renormalised over the allowed ones: the score is the probability given that
        one of them is right. With several, the score is the probability that the allowed classes are all decided
        rightly, were they independent of each other: the product of p for the suggested ones and 1 - p for the
        others; no class at all may be the suggestion. Where no allowed class is known the suggestion is empty
        with score 0.
        """
        wanted = set(self.class_names if allowed is None else allowed)
        kept = [index for index, name in enumerate(self.class_names) if name in wanted]
        if not kept:
            return [Suggested(class_names=(), score=0.0)] * len(features)
        names = [self.class_names[index] for index in kept]
        if self.multiple:
            return self._several(self.predict_proba(features)[:, kept], names, kept)
        # Dropping logits before the softmax renormalises without ever dividing by a vanishing sum.
        probabilities = calibrated(self._logits(features)[:, kept], 1.0, multiple=False)
        best = probabilities.argmax(axis=1)
        scores = probabilities[np.arange(len(best)), best]
        return [
            Suggested(class_names=(names[index],), score=score)
            for index, score in zip(best.tolist(), scores.tolist(), strict=True)
        ]

    def _logits(self, features: AnyFloats) -> NDArray[np.float64]:
        """Return logits, (n, k), that are calibrated as they are."""
        logits = self.head.logits(features).astype(np.float64) / self.temperature
        if self.opinion is None:
            return logits
        opinions = self.opinion.log_probabilities(features).astype(np.float64)
        return pooled_with(logits, opinions, self.opinion_share)

    def _several(self, probabilities: NDArray[np.float64], names: list[str], kept: list[int]) -> list[Suggested]:
        thresholds = np.asarray(self.thresholds)[kept]
        chosen: NDArray[np.bool_] = probabilities >= thresholds
        scores = np.where(chosen, probabilities, 1 - probabilities).prod(axis=1)
        return [
            Suggested(class_names=tuple(name for name, taken in zip(names, row, strict=True) if taken), score=score)
            for row, score in zip(chosen.tolist(), scores.tolist(), strict=True)
        ]


def suggest_known(of_groups: NDArray[np.float32], class_names: Sequence[str]) -> list[Suggested]:
    """Return a suggestion for each row that ``model.classifier`` gives for the groups of categories that mean classes.

    The class comes only where it is more probable than any single other category: what the network itself would
    answer. So images of classes that it does not know get none, whether its probabilities are sharp or smoothed.
    The score is the probability among all categories, not renormalised over the classes. Nobody calibrated it, but it
    is low where the network knows nothing like the image. Renormalised, it was above 0.7 for more than half of the
    pictures of apples where only bananas and oranges were known.

    Args:
        of_groups: Shape (n, n_classes + 1), 0 to 1; the last column is the most probable category of no class.
        class_names: The classes of the other columns.
    """
    scores, others = of_groups[:, :-1].max(axis=1), of_groups[:, -1]
    return [
        Suggested(class_names=(class_names[index],) if is_known else (), score=score)
        for index, is_known, score in zip(
            of_groups[:, :-1].argmax(axis=1).tolist(), (scores > others).tolist(), scores.tolist(), strict=True
        )
    ]
