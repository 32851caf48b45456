"""The feature rows of one backbone, in a folder that several processes share.

``rows-<suffix>.f16`` holds the features, shape (n_images, n_features), ``keys-<suffix>.bin`` the 32-byte
SHA-256 of each row's image; ``features.json`` says which suffix counts and what the columns mean. Two rules keep the
files readable whatever moment a process dies at:

- Appending: rows reach the disk before their keys do, and a row counts once its key is complete. The next append
  overwrites a dead writer's torn tail.
- Compacting: the rows that stay are written to files with a new suffix, and replacing ``features.json`` makes them
  count. Who has the old files open reads on in them, and finds the new ones at the next look.

Appending and replacing are done under the lock ``lock``; ``compaction.lock`` keeps a second compaction away
while the bulk of the rows is copied, which appending does not wait for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from backend.adapters.durable import exclusive_lock, sync_path
from backend.adapters.feature_keys import KEY_BYTES, Keys, is_first
from backend.adapters.feature_rows import HEADER_FILE, Features, Generation, MappedRows
from backend.adapters.feature_segments import MAX_ROWS, Segment

ROWS_PER_COPY = 4096


class FeatureTable:
    """The rows of one backbone, as any thread of this process sees them; many processes may have one each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._header_path = folder / HEADER_FILE
        self._header: tuple[tuple[int, int], Generation] | None = None
        self._rows: MappedRows | None = None
        self._lock = threading.Lock()

    def read(self, wanted: Keys) -> tuple[Features, NDArray[np.bool_]]:
        """Return the rows found, in the order asked, and which were found; shape (0, 0) where nothing is stored."""
        with self._lock:
            row_numbers = self._find(wanted)
            features = np.empty((0, 0), np.float16) if self._rows is None else self._rows.features
        found = row_numbers >= 0
        return features[row_numbers[found]], found

    def read_around(self, wanted: Keys, n_rows: int) -> tuple[Keys, Features]:
        """Return keys and rows of up to that many images next to one, its own among them; none where it has none."""
        with self._lock:
            (row_number,) = self._find(wanted)
            if self._rows is None or row_number < 0:
                return np.empty((0, KEY_BYTES), np.uint8), np.empty((0, 0), np.float16)
            keys, features = self._rows.keys, self._rows.features
        start = row_number - row_number % n_rows
        return keys[start : start + n_rows], features[start : start + n_rows]

    def holds(self, wanted: Keys) -> NDArray[np.bool_]:
        """Tell which of these images have a row, shape (n_wanted,)."""
        with self._lock:
            return self._find(wanted) >= 0

    def count(self) -> int:
        """Return the number of rows."""
        with self._lock:
            rows = self._refresh()
            return 0 if rows is None else rows.count

    def block_sizes(self) -> tuple[int, ...]:
        """Return the block sizes, none where nothing is stored."""
        with self._lock:
            rows = self._refresh()
            return () if rows is None else rows.generation.block_sizes

    def segments(self) -> Iterator[Segment]:
        """Yield all rows there are now, some thousands at a time; what is removed meanwhile is still there."""
        with self._lock:
            rows = self._refresh()
            if rows is None:
                return
            keys, features, block_sizes = rows.keys, rows.features, rows.generation.block_sizes
        for start in range(0, len(keys), MAX_ROWS):
            some = slice(start, start + MAX_ROWS)
            yield Segment(keys=keys[some], features=features[some], block_sizes=block_sizes)

    def append(self, keys: Keys, features: Features, block_sizes: tuple[int, ...]) -> None:
        """Store the rows of those images that have none yet.

        Raises:
            ValueError: rows of other blocks are stored.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._exclusively():
            with self._lock:
                rows = self._refresh() or self._begin(block_sizes)
                missing = rows.find(keys) < 0
                n_rows, generation = rows.count, rows.generation
            if generation.block_sizes != block_sizes:
                raise ValueError(
                    f"the features of backbone {self._folder.name} are stored in blocks of {generation.block_sizes}, "
                    f"got blocks of {block_sizes}: another network must have another digest"
                )
            new = np.flatnonzero(missing & is_first(keys))
            # A dead writer's keys must be gone before there are rows that they would claim.
            _append_durably(generation.keys_path, n_rows * KEY_BYTES, b"")
            _append_durably(generation.rows_path, n_rows * generation.row_bytes, features[new].tobytes())
            _append_durably(generation.keys_path, n_rows * KEY_BYTES, keys[new].tobytes())

    def compact(self, kept: Keys) -> int:
        """Remove the rows of all images but these; what is appended meanwhile stays. Return how many were removed."""
        if not self._folder.is_dir():
            return 0
        with exclusive_lock(self._folder / "compaction.lock"):
            try:
                return self._rewrite(kept)
            finally:
                with self._exclusively():
                    self._sweep(keep_current=True)

    def clean(self) -> None:
        """Remove what appending and compacting left behind where a process died."""
        with exclusive_lock(self._folder / "compaction.lock"), self._exclusively():
            self._sweep(keep_current=True)

    def delete(self) -> None:
        """Remove all rows; the locks stay, because somebody may wait for them."""
        if not self._folder.is_dir():
            return
        with exclusive_lock(self._folder / "compaction.lock"), self._exclusively():
            # The header goes last: as long as it is there, somebody knows that there is something to delete.
            self._sweep(keep_current=False)
            self._header_path.unlink(missing_ok=True)
            sync_path(self._folder)
        with self._lock:
            self._refresh()

    def _exclusively(self) -> AbstractContextManager[None]:
        """Keep every other writer out."""
        return exclusive_lock(self._folder / "lock")

    def _begin(self, block_sizes: tuple[int, ...]) -> MappedRows:
        """Make the files of a first generation."""
        generation = Generation.new(self._folder, block_sizes)
        generation.rows_path.touch()
        generation.keys_path.touch()
        generation.make_current()
        sync_path(self._folder.parent)
        self._rows = MappedRows(generation)
        return self._rows

    def _rewrite(self, kept: Keys) -> int:
        """Copy the rows that stay and make the copy count; the caller keeps other compactions away."""
        with self._lock:
            before = self._refresh()
            if before is None:
                return 0
            row_numbers, keys, features = before.find(kept), before.keys, before.features
        staying = np.unique(row_numbers[row_numbers >= 0])
        if len(staying) == len(keys):
            return 0
        generation = Generation.new(self._folder, before.generation.block_sizes)
        with generation.rows_path.open("wb") as rows_file, generation.keys_path.open("wb") as keys_file:
            _copy(keys, features, staying, keys_file, rows_file)
            with self._exclusively():
                with self._lock:
                    after = self._refresh()
                if after is None or after.generation != before.generation:
                    return 0  # somebody removed the files by hand
                _copy(after.keys, after.features, np.arange(len(keys), after.count), keys_file, rows_file)
                sync_path(self._folder)
                generation.make_current()
        return len(keys) - len(staying)

    def _sweep(self, *, keep_current: bool) -> None:
        """Remove the files of all generations, or of all that do not count; the caller keeps other writers out."""
        generation = self._current() if keep_current else None
        spared = {generation.rows_path, generation.keys_path} if generation else set()
        for path in self._folder.iterdir():
            if path.suffix in (".f16", ".bin", ".tmp") and path not in spared:
                path.unlink()
        sync_path(self._folder)

    def _find(self, wanted: Keys) -> NDArray[np.int64]:
        """Return the row numbers in ``self._rows``, -1 where there is none; the caller holds the thread lock.

        Rows never change, so what others appended matters only where something is missing.
        """
        generation = self._current()
        if generation and self._rows and self._rows.generation == generation:
            row_numbers = self._rows.find(wanted)
            if (row_numbers >= 0).all():
                return row_numbers
        rows = self._refresh()
        return np.full(len(wanted), -1, np.int64) if rows is None else rows.find(wanted)

    def _refresh(self) -> MappedRows | None:
        """Return all rows there are now, whoever appended or compacted them; the caller holds the thread lock.

        Where the header names files that are not there, somebody removed them: nothing is stored then.
        """
        generation = self._current()
        while generation:
            if self._rows is None or self._rows.generation != generation:
                self._rows = MappedRows(generation)
            try:
                self._rows.extend()
            except FileNotFoundError:
                self._header = None
                missing, generation = generation, self._current()
                if generation == missing:
                    break
            else:
                return self._rows
        self._rows = None
        return None

    def _current(self) -> Generation | None:
        """Return the generation that counts; the header is read again only when it is another file."""
        try:
            status = self._header_path.stat()
            identity = status.st_ino, status.st_mtime_ns
            if self._header is None or self._header[0] != identity:
                self._header = identity, Generation.read(self._header_path)
        except FileNotFoundError:
            self._header = None
            return None
        return self._header[1]


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


def _copy(
    keys: Keys, features: Features, row_numbers: NDArray[np.int64], keys_file: BinaryIO, rows_file: BinaryIO
) -> None:
    """Append some of the rows to files of another generation, durably."""
    for start in range(0, len(row_numbers), ROWS_PER_COPY):
        chunk = row_numbers[start : start + ROWS_PER_COPY]
        rows_file.write(features[chunk].tobytes())
        keys_file.write(keys[chunk].tobytes())
    for file in (rows_file, keys_file):
        file.flush()
        os.fdatasync(file.fileno())
