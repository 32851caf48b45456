"""Images on local disk, named by the SHA-256 of their bytes and bounded in total size."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from backend.adapters.durable import exclusive_lock, is_locked, shared_lock
from backend.ports import CachedImage

log = structlog.get_logger()

GRACE_S = 600.0
ABANDONED_S = 1.0
KEPT_SHARE = 0.9
COUNTING_SHARE = 0.05


class ImageCache:
    """A folder of images that several processes and threads may share; the least recently used ones go first.

    An image that was handed out stays for ``grace_s``, even where the cache is over its bound because of it: who got
    a path has that long to open it. The folder is counted only after every ``COUNTING_SHARE`` of the bound written.
    """

    def __init__(self, folder: Path, max_bytes: int, *, grace_s: float = GRACE_S) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._written_bytes = max_bytes  # so that the first image has the folder counted

    def get(self, digest: str) -> CachedImage | None:
        """Return an image, or ``None`` when it is not there (any more).

        Raises:
            ValueError: the digest is not a SHA-256 in hex.
        """
        path = self._path(digest)
        if not path.exists():
            return None
        with shared_lock(self._folder / "lock"):
            try:
                os.utime(path)
            except FileNotFoundError:
                return None
        return CachedImage(digest=digest, path=path)

    def store(self, chunks: Iterable[bytes]) -> CachedImage:
        """Store the bytes of an image, unless reading them raises."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content_hash = hashlib.sha256()
        n_bytes = 0
        descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                for chunk in chunks:
                    content_hash.update(chunk)
                    n_bytes += file.write(chunk)
                file.flush()
                # A name must never stand for other bytes, not even after a power failure.
                os.fdatasync(file.fileno())
                digest = content_hash.hexdigest()
                path = self._path(digest)
                path.parent.mkdir(exist_ok=True)
                with shared_lock(self._folder / "lock"):
                    temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._count(n_bytes)
        return CachedImage(digest=digest, path=path)

    def clean(self) -> None:
        """Remove what writers that died left behind: what is still written to is locked, or was begun just now."""
        for path, status in _files(self._folder.glob(".*")):
            if status.st_mtime < time.time() - ABANDONED_S and not is_locked(path):
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{digest[:80]!r} is not a SHA-256 in hex")
        return self._folder / digest[:2] / digest

    def _count(self, n_bytes: int) -> None:
        with self._lock:
            self._written_bytes += n_bytes
            if self._written_bytes < COUNTING_SHARE * self._max_bytes:
                return
            self._written_bytes = 0
        self.clean()
        self._evict()

    def _evict(self) -> None:
        """Remove the least recently used images until there is some room again."""
        images = sorted((status.st_mtime, status.st_size, path) for path, status in _files(self._folder.glob("??/*")))
        n_bytes = sum(size for _, size, _ in images)
        if n_bytes <= self._max_bytes:
            return
        log.info("image cache is full", n_bytes=n_bytes, max_bytes=self._max_bytes)
        with exclusive_lock(self._folder / "lock"):
            for _, size, path in images:
                if n_bytes <= KEPT_SHARE * self._max_bytes:
                    return
                if not self._was_handed_out(path):
                    path.unlink(missing_ok=True)
                    n_bytes -= size

    def _was_handed_out(self, path: Path) -> bool:
        return any(status.st_mtime > time.time() - self._grace_s for _, status in _files([path]))


def _files(paths: Iterable[Path]) -> Iterable[tuple[Path, os.stat_result]]:
    """Yield the files among these paths that are still there."""
    for path in paths:
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue
