"""Feature rows of numbered images: each row tells whose it is, so that no mix-up goes unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from backend.adapters.features import FeatureFiles

BACKBONE = "0123abcd"
BLOCK_SIZES = (2, 3)
N_FEATURES = sum(BLOCK_SIZES)


def digests(numbers: Iterable[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def rows(numbers: Iterable[int]) -> np.ndarray:
    exact = [[number % 2048, number // 2048, 1, -(number % 7), 0.5] for number in numbers]
    return np.array(exact, np.float16).reshape(-1, N_FEATURES)


def append(store: FeatureFiles, numbers: Iterable[int]) -> None:
    numbers = list(numbers)
    store.append(BACKBONE, digests(numbers), rows(numbers), block_sizes=BLOCK_SIZES)


def found_among(store: FeatureFiles, numbers: Iterable[int]) -> set[int]:
    """Return which of these images have a row, all of which must be theirs."""
    numbers = list(numbers)
    features, found = store.read(BACKBONE, digests(numbers))
    here = [number for number, is_here in zip(numbers, found, strict=True) if is_here]
    np.testing.assert_array_equal(features, rows(here).reshape(features.shape))
    return set(here)


def assert_holds(store: FeatureFiles, present: Iterable[int], absent: Iterable[int] = ()) -> None:
    stored = set(present)
    numbers = np.random.default_rng(0).permutation([*stored, *absent]).tolist()
    assert found_among(store, numbers) == stored
    assert store.holds(BACKBONE, digests(numbers)).tolist() == [number in stored for number in numbers]


def data_files(root: Path) -> dict[str, Path]:
    """Return the files of keys and rows by the first part of their names; there may be only one of each."""
    found = [*(root / BACKBONE).glob("*.bin"), *(root / BACKBONE).glob("*.f16")]
    by_kind = {path.stem.split("-")[0]: path for path in found}
    assert len(by_kind) == len(found)
    return by_kind
