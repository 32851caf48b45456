"""Artifacts in an object storage that several machines share, each with a cache of its own.

Below the storage's URL, ``manifests/<key>.json`` says which objects an artifact consists of, with size and SHA-256, and
``files/<key>/<attempt>/…`` are these objects. Each publisher writes files below an attempt of its own, and last of all
the manifest, which the storage takes only from the first one: nobody can overwrite anything, and what has no manifest
does not exist.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections import defaultdict
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from backend.adapters.artifacts import LocalArtifacts, check_key, holds_files
from backend.adapters.durable import sha256_of, write_whole
from backend.adapters.object_storage import ObjectStorage
from backend.errors import NotFound, StoreUnavailable

log = structlog.get_logger()

ATTEMPT = "[0-9a-f]{8}-[0-9a-f]{16}"
"""The second in which an attempt to publish began, and chance."""
RECENT_S = 600.0
"""What was asked for so lately stays in the cache: somebody may be about to open its files."""
ABANDONED_S = 24 * 3600.0
"""Files without a manifest for so long belong to a publisher that died."""


def _checked(path: str) -> str:
    check_key(path)
    return path


class ManifestFile(BaseModel):
    """A file of an artifact."""

    sha256: str
    n_bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What an artifact consists of: its files by their path in the folder."""

    format_version: Literal[1] = 1
    attempt: str = Field(pattern=rf"^{ATTEMPT}$")
    files: dict[Annotated[str, AfterValidator(_checked)], ManifestFile] = Field(min_length=1)

    @property
    def n_bytes(self) -> int:
        """The size of all files."""
        return sum(file.n_bytes for file in self.files.values())

    def mismatch(self, folder: Path) -> str | None:
        """Return the first file of a folder that is not as it should be, if any."""
        for name, file in self.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file.n_bytes or sha256_of(path) != file.sha256:
                return name
        return None


def open_artifacts(url: str, cache_folder: Path, *, max_cache_bytes: int) -> LocalArtifacts | SharedArtifacts:
    """Return the store behind ``ARTIFACTS_URL``: a folder as it is, or any URL that fsspec knows, with a cache.

    Raises:
        ConfigurationError: the URL cannot be used here.
    """
    if "://" not in url:
        return LocalArtifacts(Path(url))
    return SharedArtifacts(ObjectStorage(url), cache_folder, max_cache_bytes=max_cache_bytes)


class SharedArtifacts:
    """An ``ArtifactStore`` in an object storage; ``cache_folder`` belongs to this machine.

    An artifact in the cache is used without asking the storage: it can never have changed. Its checksums are verified
    when it is downloaded, and once more in every process that uses it.
    """

    def __init__(self, storage: ObjectStorage, cache_folder: Path, *, max_cache_bytes: int) -> None:
        self._storage = storage
        self._cache = LocalArtifacts(cache_folder)
        self._max_cache_bytes = max_cache_bytes
        self._verified: set[str] = set()

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend an empty local folder that is removed at the end."""
        return self._cache.scratch()

    def publish(self, key: str, folder: Path) -> None:
        """Store a finished folder whole and durably; a key that exists already keeps its first content.

        Raises:
            ValueError: a malformed key, one below or above another, or a folder without a file in it.
            StoreUnavailable: the storage does not answer, or refuses.
        """
        check_key(key)
        if not holds_files(folder):
            raise ValueError(f"{folder} has no file in it: an artifact needs one at its top")
        parents = [parent.as_posix() for parent in Path(key).parents][:-1]
        if any(self._manifest(parent) for parent in parents):
            raise ValueError(f"{key!r} lies within a key that is published already: choose another")
        if self.keys(key) not in ([], [key]):
            raise ValueError(f"{key!r} is the beginning of keys that are published already: choose another")
        if self._manifest(key):
            log.info("artifact exists already", key=key)
            return
        manifest = _describe(folder)
        for name in manifest.files:
            self._storage.upload(folder / name, _file_name(key, manifest.attempt, name))
        is_first = self._storage.create(_manifest_name(key), manifest.model_dump_json().encode())
        # A request that was repeated because its answer got lost finds its own manifest.
        if is_first or self._manifest(key) == manifest:
            self._keep(key, manifest, folder)
        else:
            log.info("artifact exists already", key=key)
            self._delete_files(key, manifest)

    def fetch(self, key: str) -> Path:
        """Return a local folder with the content; read only.

        Raises:
            NotFound: nothing was published under this key, or its content was altered.
            StoreUnavailable: it is not in the cache, and the storage does not answer, or refuses.
        """
        check_key(key)
        if not self._is_cached(key):
            manifest = self._manifest(key)
            if manifest is None:
                raise NotFound(f"no artifact {key} in {self._storage.url}: it was never published, or it was deleted")
            with self.scratch() as folder:
                self._download(key, manifest, folder)
                self._keep(key, manifest, folder)
        return self._cache.fetch(key) / "files"

    def keys(self, prefix: str) -> list[str]:
        """Return the published keys below a prefix, sorted; the prefix itself when it is one.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        prefix = prefix.rstrip("/")
        if prefix:
            check_key(prefix)
        names = self._storage.names(f"manifests/{prefix}" if prefix else "manifests")
        keys = [name.removeprefix("manifests/").removesuffix(".json") for name in names]
        return [prefix] if prefix and not keys and self._manifest(prefix) else sorted(keys)

    def delete(self, key: str) -> None:
        """Remove what was published under a key; nothing happens when there is nothing.

        Other machines may have it in their caches for some time.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses.
        """
        check_key(key)
        manifest = self._manifest(key)
        if manifest:
            self._storage.delete(_manifest_name(key))
            self._delete_files(key, manifest)
        self._cache.delete(key)
        self._verified.discard(key)

    def clean(self) -> int:
        """Remove what publishers that died left behind, here and in the storage; return how many folders and files."""
        removed = self._cache.clean()
        try:
            for name in self._abandoned():
                self._storage.delete(name)
                removed += 1
        except StoreUnavailable as error:
            log.warning("storage not cleaned", reason=str(error))
        return removed

    def _abandoned(self) -> list[str]:
        """Return the objects that are old and belong to no artifact."""
        attempts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name in self._storage.names("files"):
            if place := re.fullmatch(rf"files/(.+?)/({ATTEMPT})/.+", name):
                attempts[place[1]][place[2]].append(name)
        published = set(self.keys(""))
        abandoned = []
        for key, names_of in attempts.items():
            manifest = self._manifest(key) if key in published and len(names_of) > 1 else None
            for attempt, names in names_of.items():
                is_in_use = key in published and (manifest is None or manifest.attempt == attempt)
                if not is_in_use and time.time() - int(attempt.partition("-")[0], 16) > ABANDONED_S:
                    abandoned += names
        return abandoned

    def _manifest(self, key: str) -> Manifest | None:
        content = self._storage.read(_manifest_name(key))
        if content is None:
            return None
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise NotFound(
                f"the manifest of artifact {key} in {self._storage.url} is not one of ours: {error}"
            ) from error

    def _download(self, key: str, manifest: Manifest, folder: Path) -> None:
        for name in manifest.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._storage.download(_file_name(key, manifest.attempt, name), path):
                raise NotFound(
                    f"artifact {key} in {self._storage.url} lacks {name}: it is being deleted, or was altered"
                )
        wrong = manifest.mismatch(folder)
        if wrong:
            raise NotFound(f"artifact {key} in {self._storage.url} was altered: the SHA-256 of {wrong} is another one")

    def _is_cached(self, key: str) -> bool:
        """Tell whether the cache holds an artifact as it was published; what is spoilt goes."""
        try:
            folder = self._cache.fetch(key)
            os.utime(folder / "manifest.json")
            if key not in self._verified:
                manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
                wrong = manifest.mismatch(folder / "files")
                if wrong:
                    log.warning("cached artifact was altered and is downloaded again", key=key, file=wrong)
                    self._cache.delete(key)
                    return False
                self._verified.add(key)
            return True
        except NotFound:
            return False  # not removed: another process may be putting it there
        except (FileNotFoundError, ValidationError):
            self._cache.delete(key)
            return False

    def _keep(self, key: str, manifest: Manifest, folder: Path) -> None:
        """Put an artifact into the cache; ``folder`` is taken if it was lent by ``scratch``, else copied."""
        with self.scratch() as kept:
            is_lent = folder.parent == kept.parent
            shutil.copytree(folder, kept / "files", copy_function=os.link if is_lent else shutil.copyfile)
            write_whole(kept / "manifest.json", manifest.model_dump_json().encode())
            self._cache.publish(key, kept)
        self._verified.add(key)
        self._make_room()

    def _make_room(self) -> None:
        """Remove what was not used for the longest time, until the cache is within its bounds."""
        found = []
        for key in self._cache.keys(""):
            with suppress(NotFound, FileNotFoundError, ValidationError):
                path = self._cache.fetch(key) / "manifest.json"
                found.append((path.stat().st_mtime, key, Manifest.model_validate_json(path.read_bytes()).n_bytes))
        n_bytes = sum(size for _, _, size in found)
        for used_at, key, size in sorted(found):
            if n_bytes <= self._max_cache_bytes or time.time() - used_at < RECENT_S:
                return
            self._cache.delete(key)
            n_bytes -= size

    def _delete_files(self, key: str, manifest: Manifest) -> None:
        for name in manifest.files:
            self._storage.delete(_file_name(key, manifest.attempt, name))


def _manifest_name(key: str) -> str:
    return f"manifests/{key}.json"


def _file_name(key: str, attempt: str, name: str) -> str:
    return f"files/{key}/{attempt}/{name}"


def _describe(folder: Path) -> Manifest:
    """Return a manifest of what a folder holds, for a new attempt to publish it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(
        attempt=f"{int(time.time()):08x}-{secrets.token_hex(8)}",
        files={
            path.relative_to(folder).as_posix(): ManifestFile(sha256=sha256_of(path), n_bytes=path.stat().st_size)
            for path in paths
        },
    )
