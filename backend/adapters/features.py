"""Feature rows in files, one folder for each backbone; ``feature_table`` says what is in a folder."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.adapters.feature_keys import to_keys
from backend.adapters.feature_rows import HEADER_FILE
from backend.adapters.feature_segments import Segment
from backend.adapters.feature_table import FeatureTable
from backend.errors import NotFound


class FeatureFiles:
    """A ``FeatureStore`` in a folder that several processes and threads may share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[str, FeatureTable] = {}
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
        self._add(backbone_digest, Segment.of_images(image_digests, features, block_sizes))

    def segments(self, backbone_digest: str) -> Iterator[bytes]:
        """Yield the rows there are now in pieces that ``add_segment`` takes in again."""
        for segment in self._table(backbone_digest).segments():
            yield segment.to_bytes()

    def add_segment(self, backbone_digest: str, segment: bytes) -> None:
        """Store the rows of a piece that may come from anywhere, but for those already stored.

        Raises:
            ValueError: it is no segment, or one of another backbone.
        """
        self._add(backbone_digest, Segment.from_bytes(segment))

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
        return self._table(backbone_digest).read(to_keys(image_digests))

    def read_around(
        self, backbone_digest: str, image_digest: str, n_rows: int
    ) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and rows, (n_found, n_features), of up to ``n_rows`` images stored next to one, and its own.

        The same images for each of them. Nothing where the image has no row.

        Raises:
            ValueError: a malformed digest.
            ConfigurationError: the files have another format.
        """
        keys, rows = self._table(backbone_digest).read_around(to_keys([image_digest]), n_rows)
        return [key.tobytes().hex() for key in keys], rows

    def holds(self, backbone_digest: str, image_digests: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which images have a row, (n_images,); what ``read`` would find, without reading it."""
        return self._table(backbone_digest).holds(to_keys(image_digests))

    def count(self, backbone_digest: str) -> int:
        """Return the number of rows of this backbone."""
        return self._table(backbone_digest).count()

    def backbones(self) -> list[str]:
        """Return the digests of the backbones that something is stored for, sorted."""
        return sorted(path.parent.name for path in self._root.glob(f"*/{HEADER_FILE}"))

    def compact(self, backbone_digest: str, keep: Collection[str]) -> int:
        """Remove the rows of all images but these and of those appended meanwhile; return how many were removed.

        Needs as much free disk as the rows that stay. Reading and appending go on, in other processes too.

        Raises:
            ValueError: a malformed digest.
            OSError: the disk is full; the rows are as they were.
        """
        # A table of its own, so that nobody who reads in the shared one waits for it.
        return FeatureTable(self._folder(backbone_digest)).compact(to_keys(keep))

    def clean(self) -> None:
        """Remove what processes that died left behind."""
        for lock in self._root.glob("*/lock"):
            self._table(lock.parent.name).clean()

    def delete(self, backbone_digest: str) -> None:
        """Remove all rows of a backbone; nothing happens when there are none."""
        self._table(backbone_digest).delete()

    def _add(self, backbone_digest: str, segment: Segment) -> None:
        table = self._table(backbone_digest)
        if len(segment):
            table.append(segment.keys, segment.features, segment.block_sizes)

    def _table(self, backbone_digest: str) -> FeatureTable:
        with self._lock:
            if backbone_digest not in self._tables:
                self._tables[backbone_digest] = FeatureTable(self._folder(backbone_digest))
            return self._tables[backbone_digest]

    def _folder(self, backbone_digest: str) -> Path:
        check_backbone_digest(backbone_digest)
        return self._root / backbone_digest


def check_backbone_digest(backbone_digest: str) -> None:
    """Make sure that a backbone digest can name a folder.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", backbone_digest):
        raise ValueError(f"{backbone_digest!r} is not a backbone digest: it names a folder")
