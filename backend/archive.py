"""One file that holds many, each with its SHA-256: a zip file that is written whole and read with suspicion.

Entries have names like ``database/task.jsonl``; ``manifest.json``, the last one, lists all others. Nothing is ever
unpacked by name: who reads asks for the entries it knows, and gets bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from backend.adapters.durable import sync_path
from backend.errors import Conflict, InvalidRequest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 2**20
CHUNK_BYTES = 2**20
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What reading an entry raises that was damaged."""


def _entry_name(name: str) -> str:
    parts = name.split("/")
    if len(name) > 1000 or not all(re.fullmatch(r"_|[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in parts):
        raise ValueError("not the name of an entry")
    return name


class Entry(BaseModel):
    """What an entry must be."""

    sha256: str
    n_bytes: int = Field(ge=0)


class ArchiveManifest(BaseModel):
    """What is in an archive, and where it comes from."""

    format: Literal["tandem-backup"] = "tandem-backup"
    format_version: Literal[1] = 1
    created_at: datetime
    revision: str = Field(pattern=r"^[0-9a-z]{1,32}$")
    entries: dict[Annotated[str, AfterValidator(_entry_name)], Entry] = Field(default_factory=dict)


class ArchiveWriter:
    """Adds entries one after the other; ``revision`` must be set before the end."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self.revision = ""
        self.entries: dict[str, Entry] = {}

    def add(self, name: str, chunks: Iterable[bytes], *, compressed: bool = False) -> None:
        """Add an entry from its content in pieces."""
        information = zipfile.ZipInfo(_entry_name(name), date_time=(1980, 1, 1, 0, 0, 0))
        information.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        information.external_attr = 0o600 << 16
        digest, n_bytes = hashlib.sha256(), 0
        with self._file.open(information, "w", force_zip64=True) as target:
            for chunk in chunks:
                target.write(chunk)
                digest.update(chunk)
                n_bytes += len(chunk)
        self.entries[name] = Entry(sha256=digest.hexdigest(), n_bytes=n_bytes)

    def finish(self) -> None:
        """Add the manifest."""
        manifest = ArchiveManifest(created_at=datetime.now(UTC), revision=self.revision, entries=self.entries)
        self._file.writestr(MANIFEST, manifest.model_dump_json())

    def add_file(self, name: str, source: IO[bytes]) -> None:
        """Add an open file."""
        self.add(name, _chunks(source))


@contextmanager
def write_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write an archive that only its owner may read, and that is there when it is complete.

    Raises:
        Conflict: there is a file of that name.
        InvalidRequest: nothing can be written there.
    """
    if path.exists():
        raise Conflict(f"{path} exists already: choose another name, or remove it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None
        with os.fdopen(descriptor, "w+b") as raw:
            with zipfile.ZipFile(raw, "w") as file:
                writer = ArchiveWriter(file)
                yield writer
                writer.finish()
            raw.flush()
            os.fsync(raw.fileno())
        temporary.rename(path)
        sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class ArchiveReader:
    """Reads entries, each checked against the manifest."""

    def __init__(self, file: zipfile.ZipFile, manifest: ArchiveManifest) -> None:
        self._file = file
        self.manifest = manifest

    def names(self, prefix: str) -> list[str]:
        """Return the names of the entries below a prefix, sorted."""
        return sorted(name for name in self.manifest.entries if name.startswith(prefix))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an entry's content; what was altered is told at its end at the latest.

        Raises:
            InvalidRequest: it is not what the manifest says.
        """
        entry = self.manifest.entries[name]
        digest, n_bytes = hashlib.sha256(), 0
        try:
            with self._file.open(name) as source:
                for chunk in _chunks(source):
                    n_bytes += len(chunk)
                    if n_bytes > entry.n_bytes:
                        break
                    digest.update(chunk)
                    yield chunk
        except UNREADABLE as error:
            raise InvalidRequest(f"{name} in the backup cannot be read ({error}): take another backup") from error
        if n_bytes != entry.n_bytes or digest.hexdigest() != entry.sha256:
            raise InvalidRequest(f"{name} in the backup was altered or is incomplete: take another backup")

    def read(self, name: str) -> bytes:
        """Return an entry's content.

        Raises:
            InvalidRequest: it is not what the manifest says.
        """
        return b"".join(self.chunks(name))

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield an entry's lines without their ends."""
        rest = b""
        for chunk in self.chunks(name):
            *complete, rest = (rest + chunk).split(b"\n")
            yield from complete
        if rest:
            yield rest

    def copy(self, name: str, path: Path) -> None:
        """Write an entry's content into a new file, in folders made for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            for chunk in self.chunks(name):
                target.write(chunk)

    def verify(self) -> None:
        """Read everything once, before anything is done with any of it.

        Raises:
            InvalidRequest: something is not what the manifest says.
        """
        for name in self.manifest.entries:
            for _ in self.chunks(name):
                pass


@contextmanager
def read_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive that may come from anywhere.

    Raises:
        InvalidRequest: it is none, or holds something that its manifest does not list.
    """
    try:
        with zipfile.ZipFile(path) as file:
            yield ArchiveReader(file, _manifest(file, path))
    except (zipfile.BadZipFile, FileNotFoundError, IsADirectoryError) as error:
        raise InvalidRequest(f"{path} is no backup that can be read: {error}") from error


def _manifest(file: zipfile.ZipFile, path: Path) -> ArchiveManifest:
    try:
        if file.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
            raise InvalidRequest(f"{path} has a manifest that is too large to be one of ours")
        manifest = ArchiveManifest.model_validate_json(file.read(MANIFEST))
    except KeyError:
        raise InvalidRequest(f"{path} has no {MANIFEST}: it is no backup, or one that was cut off") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InvalidRequest(
            f"{path} is no backup that this Tandem knows ({first['loc']}: {first['msg']}): a newer one may"
        ) from None
    if sorted(file.namelist()) != sorted([*manifest.entries, MANIFEST]):
        raise InvalidRequest(f"{path} holds other entries than its manifest lists: take another backup")
    return manifest


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
