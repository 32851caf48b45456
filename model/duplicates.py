"""Photos of the same thing from nearly the same place: re-encoded, resized, cropped a little, taken in a burst.

Two images are near-duplicates when their rows in the space that heads are fitted in (``model.preprocessing``: centred
on all images there are, each block of features of unit length) point the same way. Of copies of photos, saved at JPEG
quality 60, shrunk to 0.8, a twentieth brighter or cropped by a fiftieth on each side, 591 and 600 of 600 were above
``LIKENESS``, by backbone, and none of the 33 to 36 pairs of the photos themselves above it had different labels
(``benchmarks/planted.py``).

It takes features that tell images apart. An untrained network's do so less, and one that was fine-tuned draws images
of a class together until they look like copies: near-duplicates are found before it, on pretrained features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.head import AnyFloats, FloatArray
from model.preprocessing import earlier_block_weight, fit_preprocessing

LIKENESS = 0.85
"""Cosine, from -1 to 1, above which two images are alike."""
MAX_IMAGES = 20_000
"""Every image is held against every other: 20,000 take seconds, and ten times as many a hundred times as long."""
ROWS_AT_ONCE = 512
NONE_ALIKE = -1
N_LEADING = 64
MAX_PAIRS_APART = 100_000


def near_duplicates(features: AnyFloats, block_sizes: tuple[int, ...]) -> list[NDArray[np.intp]]:
    """Return groups of two or more near-duplicates, the largest first, each as row numbers of features, (n, d).

    Raises:
        ValueError: more than ``MAX_IMAGES`` rows, or rows that do not fit the blocks.
    """
    groups = duplicate_groups(coordinates_of(features, block_sizes))
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted((each for each in members if len(each) > 1), key=len, reverse=True)


def coordinates_of(features: AnyFloats, block_sizes: tuple[int, ...]) -> FloatArray:
    """Return coordinates to find near-duplicates by, (n, p), of feature rows, (n, d)."""
    if len(features) == 0:
        return np.empty((0, 1), np.float32)
    return fit_preprocessing(features, block_sizes, earlier_block_weight(0)).transform(features)


def duplicate_groups(coordinates: FloatArray) -> NDArray[np.intp]:
    """Return the number of each image's group, (n,), by coordinates, (n, p); whoever has no double is alone in his.

    Who is alike to one of a group belongs to it, though others of the group may look different.

    Raises:
        ValueError: more than ``MAX_IMAGES`` images.
    """
    n_images = len(coordinates)
    if n_images > MAX_IMAGES:
        raise ValueError(f"{n_images} images are too many to hold each against each: at most {MAX_IMAGES}")
    directions = _directions(coordinates)
    bounds = _bounds(directions)
    groups = np.arange(n_images)
    for start in range(0, n_images, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, n_images)
        rows, others = _alike(directions, bounds, start, stop)
        if len(rows):
            pairs = (groups[rows], groups[others])
            graph = coo_array((np.ones(len(rows), np.bool_), pairs), shape=(n_images, n_images))
            groups = connected_components(graph, directed=False)[1][groups].astype(np.intp)
    return groups


def most_alike(coordinates: FloatArray, others: FloatArray) -> NDArray[np.intp]:
    """Return the row of the other image that each image is most alike to, (n,), ``NONE_ALIKE`` where there is none.

    Args:
        coordinates: of the images, (n, p).
        others: coordinates of the other ones, (m, p) with m > 0.
    """
    directions, candidates = _directions(coordinates), _directions(others)
    rows = np.full(len(directions), NONE_ALIKE)
    for start in range(0, len(directions), ROWS_AT_ONCE):
        cosines = directions[start : start + ROWS_AT_ONCE] @ candidates.T
        rows[start : start + ROWS_AT_ONCE] = np.where(
            cosines.max(axis=1) > LIKENESS, cosines.argmax(axis=1), NONE_ALIKE
        )
    return rows


def _directions(coordinates: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(coordinates, axis=1, keepdims=True)
    directions: FloatArray = coordinates / np.maximum(lengths, np.finfo(np.float32).tiny)
    return directions


def _alike(
    directions: FloatArray, bounds: FloatArray, start: int, stop: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return row numbers from ``start`` to ``stop``, and of the row before that each of them is alike to."""
    pairs = np.flatnonzero(bounds[start:stop] @ bounds[:stop].T > LIKENESS)
    few = len(pairs) <= MAX_PAIRS_APART
    if not few:
        pairs = np.flatnonzero(directions[start:stop] @ directions[:stop].T > LIKENESS)
    rows, others = start + pairs // stop, pairs % stop
    kept = others < rows
    if few:
        kept[kept] = np.einsum("ij,ij->i", directions[rows[kept]], directions[others[kept]]) > LIKENESS
    return rows[kept], others[kept]


def _bounds(directions: FloatArray) -> FloatArray:
    """Return rows whose products are never below the cosines of the directions, (n, p), and have few columns.

    What the columns left out can add to a cosine is at most the product of their lengths (Cauchy and Schwarz).
    """
    leading = directions[:, :N_LEADING]
    rest = np.linalg.norm(directions[:, N_LEADING:], axis=1, keepdims=True)
    return np.concatenate([leading, rest * (1 + np.finfo(np.float16).eps)], axis=1)
