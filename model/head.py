"""What a head is: the linear map from a backbone's features to one logit for each class.

numpy only, so that the web process can score without loading what fitting needs.

Shapes: n images, d features in one or more blocks, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
AnyFloats = NDArray[np.floating[Any]]

VALUES_PER_CHUNK = 1 << 17
SMALLEST_NORM = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A fitted head.

    ``block_sizes`` tell how a feature row is composed (the last block is the penultimate features), ``centre``
    has shape (d,), ``weight`` (d, k) and ``bias`` (k,); weight and bias act on what ``normalise`` returns.
    """

    block_sizes: tuple[int, ...]
    centre: FloatArray
    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        n_features = sum(self.block_sizes)
        shapes = (self.centre.shape, self.weight.shape[:1], self.bias.shape)
        if self.weight.ndim != 2 or shapes != ((n_features,), (n_features,), self.weight.shape[1:]):
            raise ValueError(
                f"a head on blocks of {self.block_sizes} features cannot have a centre of shape {self.centre.shape}, "
                f"a weight of {self.weight.shape} and a bias of {self.bias.shape}"
            )

    def logits(self, features: AnyFloats) -> FloatArray:
        """Return the logits, (n, k), of feature rows, (n, d), in float16 or wider.

        The same as ``normalise(features) @ weight + bias`` up to rounding. But the lengths of the blocks divide the
        logits instead of the features, of which there are far more, and no more than one chunk is ever in memory.

        Raises:
            ValueError: the rows are not the kind this head was fitted on.
        """
        logits: FloatArray = np.repeat(self.bias[None], len(features), axis=0)
        blocks = _blocks(self.block_sizes)
        chunk = np.empty((_rows_per_chunk(features, self.block_sizes), len(self.centre)), np.float32)
        for start in range(0, len(features), len(chunk)):
            rows = features[start : start + len(chunk)]
            centred = _centred_roots(rows, self.centre, out=chunk[: len(rows)])
            for block in blocks:
                part = centred[:, block] @ self.weight[block]
                part /= _lengths(centred[:, block])
                logits[start : start + len(rows)] += part
        return logits


def signed_root(features: AnyFloats, *, out: FloatArray | None = None) -> FloatArray:
    """Return sign(x) * sqrt(|x|), which makes pooled activations less heavy-tailed (power normalisation)."""
    if features.dtype == np.float16:
        # Looked up in half the time that the conversion to float32 alone takes. Nothing wraps: it is the quickest mode.
        return np.take(_roots_of_all_halves(), features.view(np.uint16), out=out, mode="wrap")
    roots: FloatArray = np.abs(features, out=out, dtype=np.float32, casting="same_kind")
    np.sqrt(roots, out=roots)
    np.copysign(roots, features, out=roots, casting="same_kind")
    return roots


def normalise(features: AnyFloats, block_sizes: tuple[int, ...], centre: FloatArray) -> FloatArray:
    """Return feature rows as a head sees them, (n, d).

    Signed root and centring; then each block to unit length. A row that lies on the centre stays zero.

    Raises:
        ValueError: the rows do not have as many features as the blocks.
    """
    normalised = np.empty(features.shape, np.float32)
    n_rows = _rows_per_chunk(features, block_sizes)
    for start in range(0, len(features), n_rows):
        rows = slice(start, start + n_rows)
        centred = _centred_roots(features[rows], centre, out=normalised[rows])
        for block in _blocks(block_sizes):
            centred[:, block] /= _lengths(centred[:, block])
    return normalised


def _rows_per_chunk(features: AnyFloats, block_sizes: tuple[int, ...]) -> int:
    """Return how many rows to work on at once, so that they stay in the processor's cache."""
    if features.ndim != 2 or features.shape[1] != sum(block_sizes):
        raise ValueError(f"features of shape {features.shape} are not rows of blocks of {block_sizes}")
    return max(1, min(len(features), VALUES_PER_CHUNK // features.shape[1]))


def _blocks(block_sizes: tuple[int, ...]) -> list[slice]:
    """Return the columns of each block."""
    stops = list(accumulate(block_sizes))
    return [slice(stop - size, stop) for size, stop in zip(block_sizes, stops, strict=True)]


def _centred_roots(features: AnyFloats, centre: FloatArray, *, out: FloatArray) -> FloatArray:
    roots = signed_root(features, out=out)
    roots -= centre
    return roots


def _lengths(rows: FloatArray) -> FloatArray:
    """Return the Euclidean length of each row, (n, 1), and something above zero where it is zero."""
    lengths: FloatArray = np.sqrt(np.vecdot(rows, rows))
    return np.maximum(lengths, SMALLEST_NORM)[:, None]


@cache
def _roots_of_all_halves() -> FloatArray:
    """Return the signed root of each float16 number, by its 16 bits."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):  # some of them are not numbers
        return signed_root(halves.astype(np.float32))
