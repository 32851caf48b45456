"""Keys of feature rows, and how one is found among millions of them."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
FEW_KEYS = 16
"""So many are found sooner one by one than together."""

Keys = NDArray[np.uint8]
"""SHA-256 digests, shape (n_images, 32)."""


def to_keys(image_digests: Collection[str]) -> Keys:
    """Return digests in hex as keys, shape (n_images, 32).

    Raises:
        ValueError: one is not a SHA-256 in hex.
    """
    keys = bytes.fromhex("".join(image_digests))
    # White space, which ``fromhex`` passes over, would make the keys shorter than they should be.
    if set(map(len, image_digests)) - {2 * KEY_BYTES} or len(keys) != KEY_BYTES * len(image_digests):
        wrong = next(digest for digest in image_digests if not re.fullmatch(r"[0-9a-fA-F]{64}", digest))
        raise ValueError(f"{wrong!r} is not a SHA-256 in hex")
    return np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)


class KeyIndex:
    """Row numbers by key.

    Most keys are in an array sorted by their first eight bytes, 16 bytes of memory a row; those appended lately
    are in a dict until they are many enough to be worth merging into the array.
    """

    def __init__(self) -> None:
        self._prefixes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._row_numbers: NDArray[np.int64] = np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}
        self._n_rows = 0

    def extend(self, keys: Keys) -> None:
        """Take in the rows after those known; ``keys`` are those of all rows."""
        n_sorted = len(self._prefixes)
        if len(keys) - n_sorted > 4096 + n_sorted // 16:
            new = _prefixes(keys[n_sorted:])
            order = np.argsort(new)
            positions = np.searchsorted(self._prefixes, new[order])
            self._prefixes = np.insert(self._prefixes, positions, new[order])
            self._row_numbers = np.insert(self._row_numbers, positions, n_sorted + order)
            self._recent = {}
        else:
            self._recent.update(zip(_as_bytes(keys[self._n_rows :]), range(self._n_rows, len(keys)), strict=True))
        self._n_rows = len(keys)

    def find(self, wanted: Keys, keys: Keys) -> NDArray[np.int64]:
        """Return the row number of each wanted key, shape (n_wanted,), -1 where there is none."""
        if len(wanted) <= FEW_KEYS:
            return np.array([self._find_one(key, keys) for key in wanted], np.int64)
        row_numbers = np.full(len(wanted), -1, np.int64)
        prefixes = _prefixes(wanted)
        # In order, because then the search runs through memory in one direction.
        order = np.argsort(prefixes)
        positions = np.empty(len(wanted), np.int64)
        positions[order] = np.searchsorted(self._prefixes, prefixes[order])
        pending = np.arange(len(wanted))
        while pending.size:
            # Different keys may share a prefix: step through its run until the whole key is equal.
            pending = pending[positions[pending] < len(self._prefixes)]
            pending = pending[self._prefixes[positions[pending]] == prefixes[pending]]
            candidates = self._row_numbers[positions[pending]]
            equal = (keys[candidates] == wanted[pending]).all(axis=1)
            row_numbers[pending[equal]] = candidates[equal]
            pending = pending[~equal]
            positions[pending] += 1
        if self._recent:
            missing = np.flatnonzero(row_numbers < 0)
            row_numbers[missing] = [self._recent.get(key, -1) for key in _as_bytes(wanted[missing])]
        return row_numbers

    def _find_one(self, wanted: NDArray[np.uint8], keys: Keys) -> int:
        key = wanted.tobytes()
        if key in self._recent:
            return self._recent[key]
        prefix = wanted.view(np.uint64)[0]
        position = self._prefixes.searchsorted(prefix)
        while position < len(self._prefixes) and self._prefixes[position] == prefix:
            row_number = int(self._row_numbers[position])
            if keys[row_number].tobytes() == key:
                return row_number
            position += 1
        return -1


def is_first(keys: Keys) -> NDArray[np.bool_]:
    """Tell which keys are not the repetition of an earlier one, shape (n_images,)."""
    order = np.lexsort(_words(keys).T)
    repeated = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    first = np.ones(len(keys), bool)
    first[order[1:][repeated]] = False
    return first


def _as_bytes(keys: Keys) -> list[bytes]:
    """Return each key as bytes, in a fraction of the time that it takes to convert them one by one."""
    whole: list[bytes] = np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")[:, 0].tolist()
    return whole


def _prefixes(keys: Keys) -> NDArray[np.uint64]:
    return np.ascontiguousarray(_words(keys)[:, 0])


def _words(keys: Keys) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(np.uint64)
