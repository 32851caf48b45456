"""Feature rows in append-only files, one folder for each backbone.

``rows.f16`` holds the features, shape (n_images, n_features), ``keys.bin`` the 32-byte SHA-256 of each row's image,
``features.json`` what both mean. Rows reach the disk before their keys do, and a row counts once its key is
complete: whatever moment a writer dies at, the files stay readable, and the next append overwrites its torn tail.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.adapters.durable import exclusive_lock, sync_path, write_whole
from backend.errors import ConfigurationError, NotFound

FORMAT_VERSION = 1
KEY_BYTES = 32

_Number = TypeVar("_Number", bound=np.generic)
Keys = NDArray[np.uint8]
"""SHA-256 digests, shape (n_images, 32)."""


class FeatureFiles:
    """A ``FeatureStore`` in a folder that several processes and threads may share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[str, _Table] = {}
        self._lock = threading.Lock()

    def append(
        self,
        backbone_digest: str,
        image_digests: Sequence[str],
        features: NDArray[np.float16],
        *,
        block_sizes: tuple[int, ...],
    ) -> None:
        """Store rows of shape (n_images, n_features) durably; images already stored are left as they are.

        ``block_sizes`` says from how many columns of which block of the backbone a row is put together.

        Raises:
            ValueError: a malformed digest, or rows whose number, width or type does not fit.
        """
        shape = (len(image_digests), sum(block_sizes))
        if features.dtype != np.float16 or features.shape != shape:
            raise ValueError(
                f"features of {len(image_digests)} images in blocks of {block_sizes} are float16 of shape {shape}; "
                f"got {features.dtype} of shape {features.shape}"
            )
        keys = _to_keys(image_digests)
        if len(keys):
            self._table(backbone_digest).append(keys, features, block_sizes)

    def block_sizes(self, backbone_digest: str) -> tuple[int, ...]:
        """Return the block sizes of this backbone's rows.

        Raises:
            NotFound: nothing is stored for this backbone.
        """
        block_sizes = self._table(backbone_digest).block_sizes()
        if not block_sizes:
            raise NotFound(f"no features are stored for backbone {backbone_digest}: its images are not embedded yet")
        return block_sizes

    def read(self, backbone_digest: str, image_digests: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the rows found, (n_found, n_features) in the order asked, and which were found, (n_images,).

        Rows that other processes appended are seen at once. A backbone without any row gives shape (0, 0).

        Raises:
            ValueError: a malformed digest.
            ConfigurationError: the files have another format.
        """
        return self._table(backbone_digest).read(_to_keys(image_digests))

    def _table(self, backbone_digest: str) -> _Table:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", backbone_digest):
            raise ValueError(f"{backbone_digest!r} is not a backbone digest: it names a folder")
        with self._lock:
            if backbone_digest not in self._tables:
                self._tables[backbone_digest] = _Table(self._root / backbone_digest)
            return self._tables[backbone_digest]


class _Table:
    """The rows of one backbone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows_path = folder / "rows.f16"
        self._keys_path = folder / "keys.bin"
        self._lock = threading.Lock()
        self._block_sizes: tuple[int, ...] = ()
        self._rows: NDArray[np.float16] = np.empty((0, 0), np.float16)
        self._keys: Keys = np.empty((0, KEY_BYTES), np.uint8)
        self._index = _KeyIndex()

    def read(self, wanted: Keys) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        with self._lock:
            self._refresh()
            row_numbers = self._index.find(wanted, self._keys)
            rows = self._rows
        found = row_numbers >= 0
        return rows[row_numbers[found]], found

    def block_sizes(self) -> tuple[int, ...]:
        with self._lock:
            self._refresh()
            return self._block_sizes

    def append(self, keys: Keys, features: NDArray[np.float16], block_sizes: tuple[int, ...]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self._folder / "lock"):
            self._create(block_sizes)
            with self._lock:
                self._refresh()
                missing = self._index.find(keys, self._keys) < 0
                n_rows = len(self._keys)
            if self._block_sizes != block_sizes:
                raise ValueError(
                    f"the features of backbone {self._folder.name} are stored in blocks of {self._block_sizes}, "
                    f"got blocks of {block_sizes}: another network must have another digest"
                )
            first = np.unique(keys, axis=0, return_index=True)[1]
            new = np.sort(first[missing[first]])
            # A dead writer's keys must be gone before there are rows that they would claim.
            _append_durably(self._keys_path, n_rows * KEY_BYTES, b"")
            _append_durably(self._rows_path, n_rows * self._row_bytes, features[new].tobytes())
            _append_durably(self._keys_path, n_rows * KEY_BYTES, keys[new].tobytes())

    @property
    def _row_bytes(self) -> int:
        return sum(self._block_sizes) * np.dtype(np.float16).itemsize

    def _create(self, block_sizes: tuple[int, ...]) -> None:
        """Make the files of a new table; the caller holds the lock between processes."""
        path = self._folder / "features.json"
        if path.exists():
            return
        self._rows_path.touch()
        self._keys_path.touch()
        write_whole(path, json.dumps({"format_version": FORMAT_VERSION, "block_sizes": block_sizes}).encode())
        sync_path(self._folder.parent)

    def _refresh(self) -> None:
        """Take in rows that were appended since, by any process; the caller holds the lock between threads."""
        if not self._block_sizes and not self._open():
            return
        n_rows = self._count()
        if n_rows == len(self._keys):
            return
        if n_rows < len(self._keys):
            # Rows never go away: somebody removed the folder.
            self._index = _KeyIndex()
        self._rows = _map(self._rows_path, np.float16, (n_rows, sum(self._block_sizes)))
        self._keys = _map(self._keys_path, np.uint8, (n_rows, KEY_BYTES))
        self._index.extend(self._keys)

    def _count(self) -> int:
        """Return how many rows are complete in both files."""
        try:
            sizes = self._keys_path.stat().st_size, self._rows_path.stat().st_size
        except FileNotFoundError:
            return 0
        return min(sizes[0] // KEY_BYTES, sizes[1] // self._row_bytes)

    def _open(self) -> bool:
        """Read what the files mean; false when there are none yet."""
        path = self._folder / "features.json"
        if not path.exists():
            return False
        header = json.loads(path.read_bytes())
        if header["format_version"] != FORMAT_VERSION:
            raise ConfigurationError(
                f"{path} has format version {header['format_version']}, this Tandem reads {FORMAT_VERSION}: "
                "run the Tandem that wrote it, or delete the folder and the images are embedded again"
            )
        self._block_sizes = tuple(header["block_sizes"])
        self._rows = np.empty((0, sum(self._block_sizes)), np.float16)
        return True


class _KeyIndex:
    """Row numbers by key.

    Most keys are in an array sorted by their first eight bytes, 16 bytes of memory a row; those appended lately
    are in a dict until they are many enough for the array to be worth sorting again.
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
            prefixes = _prefixes(keys)
            self._row_numbers = np.argsort(prefixes, kind="stable")
            self._prefixes = prefixes[self._row_numbers]
            self._recent = {}
        else:
            for row_number in range(self._n_rows, len(keys)):
                self._recent[keys[row_number].tobytes()] = row_number
        self._n_rows = len(keys)

    def find(self, wanted: Keys, keys: Keys) -> NDArray[np.int64]:
        """Return the row number of each wanted key, shape (n_wanted,), -1 where there is none."""
        row_numbers = np.full(len(wanted), -1, np.int64)
        prefixes = _prefixes(wanted)
        positions = np.searchsorted(self._prefixes, prefixes)
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
            for index in np.flatnonzero(row_numbers < 0):
                row_numbers[index] = self._recent.get(wanted[index].tobytes(), -1)
        return row_numbers


def _prefixes(keys: Keys) -> NDArray[np.uint64]:
    return np.ascontiguousarray(np.ascontiguousarray(keys).view(np.uint64)[:, 0])


def _to_keys(image_digests: Sequence[str]) -> Keys:
    """Return digests in hex as keys, shape (n_images, 32)."""
    for digest in image_digests:
        if len(digest) != 2 * KEY_BYTES or not digest.isalnum():
            raise ValueError(f"{digest!r} is not a SHA-256 in hex")
    return np.frombuffer(bytes.fromhex("".join(image_digests)), np.uint8).reshape(-1, KEY_BYTES)


def _map(path: Path, dtype: type[_Number], shape: tuple[int, int]) -> NDArray[_Number]:
    """Return a read-only view of the first rows of a file, of which there may be none."""
    if shape[0] == 0:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


def _append_durably(path: Path, offset: int, content: bytes) -> None:
    """Write content at an offset and cut off whatever a dead writer left from there on."""
    with path.open("r+b") as file:
        if not content and file.seek(0, os.SEEK_END) == offset:
            return
        file.truncate(offset)
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fdatasync(file.fileno())
