"""Files that survive a crash: written whole or not at all, and locked between processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


def sync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file durably, so that a reader sees all of it or what was there before.

    One writer at a time: callers hold a lock. ``mode`` is what the file may be used for where it is new.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_path(path.parent)


def is_locked(path: Path) -> bool:
    """Tell whether a process that lives holds a lock on a file or folder; what is gone is not locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock against other processes and other threads; a process that dies lets it go."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Keep others from holding a file's lock exclusively."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
