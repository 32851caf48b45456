"""Features that several machines share through an object storage; local files are what serves.

What is appended here is published, and what others published is appended to the local files: at each exchange. When the
storage does not answer, everything goes on with what is here, and what could not be published waits on the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.adapters.feature_exchange import FeatureExchange
from backend.adapters.feature_segments import Segment
from backend.adapters.features import FeatureFiles
from backend.adapters.object_storage import ObjectStorage
from backend.errors import NotFound, StoreUnavailable

log = structlog.get_logger()

FRESH_S = 0.5
"""How old an exchange may be when rows are missing."""
REST_S = 30.0
"""How long a storage that did not answer is left alone."""


class SharedFeatures:
    """A ``FeatureStore`` in local files that are exchanged with other machines.

    Who appends rows, or misses some, waits ``patience_s`` at most for an exchange, and then goes on without it.
    ``folder`` is for what must be remembered about exchanges.
    """

    def __init__(self, files: FeatureFiles, storage: ObjectStorage, folder: Path, *, patience_s: float) -> None:
        self._files = files
        self._storage = storage
        self._folder = folder
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._running: dict[str, Future[bool]] = {}
        self._begun_s: dict[str, float] = {}
        self._rest_until_s = 0.0

    def append(
        self,
        backbone_digest: str,
        image_digests: Sequence[str],
        features: NDArray[np.float16],
        *,
        block_sizes: tuple[int, ...],
    ) -> None:
        """Store rows of shape (n_images, n_features) durably; images already stored are left as they are.

        Raises:
            ValueError: a malformed digest, or rows whose number, width or type does not fit.
        """
        rows = Segment.of_images(image_digests, features, block_sizes)
        missing = ~self._files.holds(backbone_digest, image_digests)
        if not missing.any():
            return
        self._exchange(backbone_digest).post(
            Segment(keys=rows.keys[missing], features=rows.features[missing], block_sizes=block_sizes)
        )
        self._files.append(backbone_digest, image_digests, features, block_sizes=block_sizes)
        self._catch_up(backbone_digest, appended=True)

    def block_sizes(self, backbone_digest: str) -> tuple[int, ...]:
        """Return the block sizes of this backbone's rows.

        Raises:
            NotFound: nothing is stored for this backbone.
        """
        try:
            return self._files.block_sizes(backbone_digest)
        except NotFound:
            self._catch_up(backbone_digest)
            return self._files.block_sizes(backbone_digest)

    def read(self, backbone_digest: str, image_digests: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the rows found, (n_found, n_features) in the order asked, and which were found, (n_images,)."""
        features, found = self._files.read(backbone_digest, image_digests)
        if not found.all() and self._catch_up(backbone_digest):
            features, found = self._files.read(backbone_digest, image_digests)
        return features, found

    def read_around(
        self, backbone_digest: str, image_digest: str, n_rows: int
    ) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and rows, (n_found, n_features), of up to ``n_rows`` images next to one, and its own.

        Nothing where the image has no row.
        """
        return self._files.read_around(backbone_digest, image_digest, n_rows)

    def holds(self, backbone_digest: str, image_digests: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which images have a row, (n_images,); what ``read`` would find, without reading it."""
        held = self._files.holds(backbone_digest, image_digests)
        if not held.all() and self._catch_up(backbone_digest):
            held = self._files.holds(backbone_digest, image_digests)
        return held

    def count(self, backbone_digest: str) -> int:
        """Return the number of rows of this backbone that are here."""
        return self._files.count(backbone_digest)

    def backbones(self) -> list[str]:
        """Return the digests of the backbones that something is stored for, here or in the storage, sorted."""
        known = set(self._files.backbones())
        try:
            known |= {name.split("/")[1] for name in self._storage.names("features")}
        except StoreUnavailable as error:
            log.warning("features in the storage cannot be listed", reason=str(error))
        return sorted(known)

    def compact(self, backbone_digest: str, keep: Collection[str]) -> int:
        """Remove the rows of all images but these and of those appended meanwhile; return how many were removed.

        Raises:
            ValueError: a malformed digest.
            OSError: the disk is full; the rows are as they were.
        """
        self._catch_up(backbone_digest)
        n_removed = self._files.compact(backbone_digest, keep)
        try:
            self._exchange(backbone_digest).drop_unused()
        except StoreUnavailable as error:
            log.warning("unused features stay in the storage", backbone=backbone_digest, reason=str(error))
        return n_removed

    def segments(self, backbone_digest: str) -> Iterator[bytes]:
        """Yield the rows there are now in pieces that ``add_segment`` takes in again."""
        self._catch_up(backbone_digest)
        return self._files.segments(backbone_digest)

    def add_segment(self, backbone_digest: str, segment: bytes) -> None:
        """Store the rows of a piece that may come from anywhere, but for those already stored.

        Raises:
            ValueError: it is no segment, or one of another backbone.
        """
        rows = Segment.from_bytes(segment)
        digests = [key.tobytes().hex() for key in rows.keys]
        self.append(backbone_digest, digests, rows.features, block_sizes=rows.block_sizes)

    def delete(self, backbone_digest: str) -> None:
        """Remove all rows of a backbone; nothing happens when there are none."""
        self._files.delete(backbone_digest)
        try:
            self._exchange(backbone_digest).delete()
        except StoreUnavailable as error:
            log.warning("features stay in the storage", backbone=backbone_digest, reason=str(error))

    def _catch_up(self, backbone_digest: str, *, appended: bool = False) -> bool:
        """Exchange rows, unless that was done a moment ago; tell whether it succeeded in time."""
        with self._lock:
            running = self._running.get(backbone_digest)
            now_s = time.monotonic()
            # One that has begun may be past what was just appended.
            suffices = running is not None and (
                not (running.running() or running.done())
                if appended
                else not running.done() or now_s - self._begun_s[backbone_digest] < FRESH_S
            )
            if running is None or not suffices:
                if now_s < self._rest_until_s:
                    return False
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="features")
                running = self._thread.submit(self._run, backbone_digest)
                self._running[backbone_digest], self._begun_s[backbone_digest] = running, now_s
        try:
            return running.result(self._patience_s)
        except TimeoutError:
            log.warning("features are exchanged in the background", backbone=backbone_digest)
            return False

    def _run(self, backbone_digest: str) -> bool:
        try:
            self._exchange(backbone_digest).run()
            return True
        except StoreUnavailable as error:
            self._rest_until_s = time.monotonic() + REST_S
            log.warning("features are not exchanged now", backbone=backbone_digest, reason=str(error))
            return False
        except OSError as error:  # a full disk is no reason to keep back what is here
            log.error("features are not exchanged now", backbone=backbone_digest, reason=str(error))
            return False

    def _exchange(self, backbone_digest: str) -> FeatureExchange:
        return FeatureExchange(backbone_digest, self._files, self._storage, self._folder / backbone_digest)
