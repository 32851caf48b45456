"""Artifacts in a folder: each key a subfolder that appears whole, never changes and disappears whole."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from backend.adapters.durable import sync_path
from backend.errors import NotFound

log = structlog.get_logger()


class LocalArtifacts:
    """An ``ArtifactStore`` in a folder that several processes may share.

    What is not published yet, or not removed yet, lives in ``.scratch`` beside what is: in the same file system,
    so that one rename makes it appear or disappear.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._scratch = root / ".scratch"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend an empty local folder that is removed at the end."""
        folder, lock = self._make_scratch()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def publish(self, key: str, folder: Path) -> None:
        """Store a finished folder whole and durably; a key that exists already keeps its first content.

        The folder belongs to the store from then on: one lent by ``scratch`` is moved, any other copied.

        Raises:
            ValueError: a malformed key, one below or above another, or a folder without a file in it.
        """
        target = self._path(key)
        if not holds_files(folder):
            raise ValueError(f"{folder} has no file in it: an artifact needs one at its top")
        parents = [parent for parent in target.parents if parent.is_relative_to(self._root)]
        if any(holds_files(parent) for parent in parents[:-1]):
            raise ValueError(f"{key!r} lies within a key that is published already: choose another")
        if self.keys(key) not in ([], [key]):
            raise ValueError(f"{key!r} is the beginning of keys that are published already: choose another")
        if folder.parent != self._scratch:
            with self.scratch() as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                self.publish(key, copy)
            return
        _sync_tree(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            log.info("artifact exists already", key=key)
        for parent in parents:
            sync_path(parent)

    def fetch(self, key: str) -> Path:
        """Return a local folder with the content; read only.

        Raises:
            NotFound: nothing was published under this key.
        """
        path = self._path(key)
        if not holds_files(path):
            raise NotFound(f"no artifact {key} in {self._root}: it was never published, or it was deleted")
        return path

    def keys(self, prefix: str) -> list[str]:
        """Return the published keys below a prefix, sorted; the prefix itself when it is one.

        A prefix ends where a part of the key ends: ``versions/p5`` is none of ``versions/p51/…``.
        """
        found = []
        pending = [self._path(prefix.rstrip("/")) if prefix else self._root]
        while pending:
            folder = pending.pop()
            entries = _entries(folder)
            if folder != self._root and _has_file(entries):
                found.append(folder.relative_to(self._root).as_posix())
            else:
                pending.extend(Path(entry) for entry in entries if entry.is_dir() and Path(entry) != self._scratch)
        return sorted(found)

    def delete(self, key: str) -> None:
        """Remove what was published under a key; nothing happens when there is nothing.

        It disappears at once and whole; who has its files open may read on.
        """
        path = self._path(key)
        if not holds_files(path):
            return
        folder, lock = self._make_scratch()
        try:
            path.rename(folder)
            sync_path(path.parent)
        except FileNotFoundError:
            log.info("artifact deleted by another process", key=key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def clean(self) -> int:
        """Remove what processes that died left behind; return how many folders."""
        removed = 0
        for folder in self._scratch.iterdir() if self._scratch.is_dir() else ():
            try:
                descriptor = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            finally:
                os.close(descriptor)
        return removed

    def _make_scratch(self) -> tuple[Path, int]:
        """Return a new folder and the descriptor that locks it: ``clean`` spares it while its process lives."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                lock = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # cleaned away between the two lines
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._root / key


def check_key(key: str) -> None:
    """Make sure that a key stays below whatever it is put behind.

    Raises:
        ValueError: it does not.
    """
    parts = key.split("/")
    if len(key) > 500 or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in parts):
        raise ValueError(f"{key[:500]!r} is not an artifact key: write it like versions/p5/p5-v3-1a2b3c4d")


def holds_files(folder: Path) -> bool:
    """Tell whether a folder is, or could become, an artifact."""
    return _has_file(_entries(folder))


def _has_file(entries: list[os.DirEntry[str]]) -> bool:
    """Tell an artifact from a folder of artifacts: only the former holds files, but for what file browsers hide."""
    return any(entry.is_file() and not entry.name.startswith(".") for entry in entries)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder at one look: an artifact may appear or disappear between two."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync_path(path)
    sync_path(folder)
