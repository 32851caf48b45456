"""Objects behind a URL, by any file system that fsspec knows: S3 and those that speak like it, and others."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from backend.adapters.durable import sync_path
from backend.errors import ConfigurationError, StoreUnavailable

# A storage that does not answer must not hold up for long who could go on without it.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}},
    "file": {"auto_mkdir": True},
}
N_TRIES = 2
IN_PROCESS = ("memory", "data")
"""Protocols whose content ends with the process."""


class ObjectStorage:
    """Objects by name below a URL, such as ``s3://bucket/prefix``; nothing is opened before the first request.

    Credentials, region and endpoint are what the library of the protocol finds by itself: for S3 the usual variables
    and files of AWS.

    Raises:
        ConfigurationError: the URL cannot be used here.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._protocol = self.url.partition("://")[0]
        if self._protocol in IN_PROCESS or "@" in self.url:
            raise ConfigurationError(
                f"ARTIFACTS_URL={self._protocol}://… cannot hold artifacts: write a folder or a URL like "
                "s3://bucket/prefix, without credentials in it"
            )
        try:
            # The class alone: an instance starts a thread, which a fork would lose.
            fsspec.get_filesystem_class(self._protocol)
        except (ImportError, ValueError) as error:
            remedy = "install tandem-label-studio[s3]" if self._protocol == "s3" else "install what fsspec asks for"
            raise ConfigurationError(f"ARTIFACTS_URL={self.url!r} cannot be used ({error}): {remedy}") from error

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or ``None`` when there is none of this name.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        try:
            with self._unavailability_reported():
                content: bytes = self._files.cat_file(self._path(name))
                return content
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path) -> bool:
        """Copy an object into a new local file, and tell whether there was one.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        try:
            with self._unavailability_reported():
                self._files.get_file(self._path(name), str(path))
                return True
        except FileNotFoundError:
            return False

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file into an object of a name that nobody else uses.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        try:
            with self._unavailability_reported():
                self._files.put_file(str(path), self._path(name))
                if isinstance(self._files, LocalFileSystem):
                    sync_path(Path(self._path(name)))
        except FileNotFoundError as error:
            raise self._unavailable(error) from error

    def create(self, name: str, content: bytes) -> bool:
        """Make an object whole and durably unless there is one of this name already, and tell whether it was made.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses. The object may have been made nevertheless.
        """
        try:
            with self._unavailability_reported():
                if isinstance(self._files, LocalFileSystem):
                    _create_file(Path(self._path(name)), content)
                else:
                    self._files.pipe_file(self._path(name), content, mode="create")
                return True
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise self._unavailable(error) from error

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects below a prefix that ends where a part of a name ends, sorted.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        try:
            with self._unavailability_reported():
                paths: list[str] = self._files.find(self._path(prefix))
        except FileNotFoundError:
            return []
        below = f"{self._root}/{prefix}/" if prefix else f"{self._root}/"
        found = [path.removeprefix(f"{self._root}/") for path in paths if path.startswith(below)]
        return sorted(name for name in found if not _is_temporary(name))

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when there is none.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        try:
            with self._unavailability_reported():
                self._files.rm_file(self._path(name))
        except FileNotFoundError:
            pass

    @cached_property
    def _files(self) -> Any:
        options = OPTIONS.get(self._protocol, {})
        files = fsspec.filesystem(self._protocol, skip_instance_cache=True, use_listings_cache=False, **options)
        if self._protocol == "s3":
            files.retries = N_TRIES
        return files

    @cached_property
    def _root(self) -> str:
        root: str = self._files._strip_protocol(self.url)
        return root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _unavailability_reported(self) -> Iterator[None]:
        """Let through what says that an object is there or not; every other error is the storage's."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # each protocol's library has errors of its own
            if _is_precondition(error):
                raise FileExistsError from error
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"the storage {self.url} cannot be used now ({type(error).__name__}: {str(error)[:300]}): "
            "try again, or check its address, bucket and credentials"
        )


def _is_precondition(error: Exception) -> bool:
    """Tell the answer to a conditional write that came second."""
    return bool(
        re.search(r"PreconditionFailed|At least one of the pre-conditions|ConditionalRequestConflict", str(error))
    )


def _create_file(path: Path, content: bytes) -> None:
    """Make a file that appears whole or not at all.

    Raises:
        FileExistsError: there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")
