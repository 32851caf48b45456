"""What a query strategy is given.

Shapes: m images without a label, n with one, s skipped, d features, p dimensions, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from model.evaluation import Targets
from model.head import AnyFloats, FloatArray
from model.preprocessing import earlier_block_weight, fit_preprocessing
from model.sampling import drawn_by_content

MAX_REFERENCE_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Images to choose from, and what is known already.

    Attributes:
        features: of the images without a label, (m, d), float16 or wider.
        probabilities: of their classes, (m, k), from 0 to 1; ``None`` while there is no model.
        labelled_features: of the images with a label, (n, d).
        labelled_targets: class indices, (n,), or booleans, (n, k), where an image may have several classes.
        multiple: whether an image may have several classes.
        skipped_features: of the images that somebody would not label, (s, d), if any: what repeats them is not asked.
        block_sizes: how a feature row is composed, as in ``model.learning.learn``; ``None`` when the rows are
            coordinates already, whose Euclidean distances mean something.
    """

    features: AnyFloats
    probabilities: AnyFloats | None
    labelled_features: AnyFloats
    labelled_targets: Targets
    multiple: bool
    block_sizes: tuple[int, ...] | None = None
    skipped_features: AnyFloats | None = None

    @property
    def known_features(self) -> AnyFloats:
        """Features of the images that somebody looked at, labelled or skipped."""
        if self.skipped_features is None:
            return self.labelled_features
        return np.concatenate([self.labelled_features, self.skipped_features])

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        skipped = self.features if self.skipped_features is None else self.skipped_features
        widths = (self.features.shape[1:], self.labelled_features.shape[1:], skipped.shape[1:])
        if len(set(widths)) != 1 or self.features.ndim != 2:
            raise ValueError(f"features have rows of shapes {widths}: all images must be embedded by the same backbone")
        if len(self.labelled_features) != len(self.labelled_targets):
            raise ValueError(
                f"{len(self.labelled_features)} labelled images do not fit {len(self.labelled_targets)} targets"
            )
        if self.labelled_targets.ndim != 1 + self.multiple:
            raise ValueError(f"targets of shape {self.labelled_targets.shape} do not fit multiple={self.multiple}")
        if self.probabilities is not None and (
            self.probabilities.ndim != 2 or len(self.probabilities) != len(self.features)
        ):
            raise ValueError(
                f"probabilities of shape {self.probabilities.shape} do not fit {len(self.features)} images"
            )


def reduced(pool: Pool) -> Pool:
    """Return the pool with float32 coordinates, centred on the mean, in place of feature rows.

    The few dimensions are those that heads are fitted in (``model.preprocessing``).
    """
    transform: Callable[[AnyFloats], FloatArray] = _as_they_are
    if pool.block_sizes is not None:
        n_classes = 1 if pool.probabilities is None else pool.probabilities.shape[1]
        reference = pool.features[drawn_by_content(pool.features, MAX_REFERENCE_ROWS)]
        transform = fit_preprocessing(
            np.concatenate([pool.labelled_features, reference]),
            pool.block_sizes,
            earlier_block_weight(len(pool.labelled_targets) / n_classes),
        ).transform
    features = transform(pool.features)
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    skipped = pool.skipped_features
    return replace(
        pool,
        features=features - centre,
        labelled_features=transform(pool.labelled_features) - centre,
        skipped_features=None if skipped is None else transform(skipped) - centre,
        block_sizes=None,
    )


def _as_they_are(rows: AnyFloats) -> FloatArray:
    return rows.astype(np.float32)
