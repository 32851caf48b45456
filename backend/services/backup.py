"""Everything in one file, taken while servers run, and put back into an empty place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from backend.archive import ArchiveReader, ArchiveWriter, read_archive, write_archive
from backend.errors import Conflict, InvalidRequest, NotFound
from backend.ports import ArtifactStore, Database, DatabaseDump, FeatureStore

log = structlog.get_logger()

SECRET = "webhook_secret"  # noqa: S105 - the name of an entry
SEPARATOR = "/_/"
"""Between the key of an artifact and the name of a file in it: no key has such a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """How much a backup holds."""

    n_rows: int
    n_artifacts: int
    n_backbones: int
    n_bytes: int


class Backup:
    """Copies database, artifacts, features and webhook secret into a file, and out of it.

    Left out is what Label Studio gives back: images.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore, features: FeatureStore, secret_path: Path) -> None:
        self._database = database
        self._artifacts = artifacts
        self._features = features
        self._secret_path = secret_path

    def write(self, path: Path) -> Contents:
        """Write a backup.

        The rows are those of one moment. Artifacts and features are copied after them: whatever a row refers to was
        stored before the row, and never changes.

        Raises:
            Conflict: there is a file of that name.
            StoreUnavailable: database or storage cannot be read.
        """
        with write_archive(path) as archive:
            with self._database.dump() as dump:
                archive.revision = dump.revision
                rows = {name: _Counted(lines) for name, lines in dump.tables.items()}
                for name, lines in rows.items():
                    archive.add(f"database/{name}.jsonl", lines, compressed=True)
            keys = self._artifacts.keys("")
            for key in keys:
                self._add_artifact(archive, key)
            backbones = self._features.backbones()
            for digest in backbones:
                for number, segment in enumerate(self._features.segments(digest)):
                    archive.add(f"features/{digest}/{number:06d}.safetensors", [segment])
            if self._secret_path.exists():
                archive.add(SECRET, [self._secret_path.read_bytes()])
        return Contents(
            n_rows=sum(lines.n for lines in rows.values()),
            n_artifacts=len(keys),
            n_backbones=len(backbones),
            n_bytes=path.stat().st_size,
        )

    def restore(self, path: Path) -> Contents:
        """Put a backup back; what was broken off can be done again.

        The rows come last, all at once: until then this is no installation with half its versions.

        Raises:
            InvalidRequest: the file is no backup, or was altered.
            Conflict: this place is not empty.
            ConfigurationError: a newer Tandem made the backup.
            StoreUnavailable: database or storage cannot be written.
        """
        with read_archive(path) as archive:
            artifacts = _names_by(archive, "artifacts/", SEPARATOR)
            features = _names_by(archive, "features/", "/")
            self._check_empty(archive, set(artifacts), set(features))
            archive.verify()
            for key, names in artifacts.items():
                with self._artifacts.scratch() as folder:
                    for name in names:
                        archive.copy(name, folder / name.partition(SEPARATOR)[2])
                    self._artifacts.publish(key, folder)
            for digest, names in features.items():
                for name in names:
                    self._features.add_segment(digest, archive.read(name))
            self._restore_secret(archive)
            tables = {
                name.removeprefix("database/").removesuffix(".jsonl"): archive.lines(name)
                for name in archive.names("database/")
            }
            n_rows = self._database.restore(DatabaseDump(revision=archive.manifest.revision, tables=tables))
        return Contents(
            n_rows=n_rows, n_artifacts=len(artifacts), n_backbones=len(features), n_bytes=path.stat().st_size
        )

    def _add_artifact(self, archive: ArchiveWriter, key: str) -> None:
        with ExitStack() as opened:
            try:
                folder = self._artifacts.fetch(key)
                paths = sorted(each for each in folder.rglob("*") if each.is_file())
                # all at once: what is removed meanwhile can be read on
                files = [(path, opened.enter_context(path.open("rb"))) for path in paths]
            except (NotFound, FileNotFoundError) as error:
                log.warning("artifact left out of the backup", key=key, reason=str(error))
                return
            for path, file in files:
                archive.add_file(f"artifacts/{key}{SEPARATOR}{path.relative_to(folder).as_posix()}", file)

    def _check_empty(self, archive: ArchiveReader, keys: set[str], digests: set[str]) -> None:
        """Refuse to mix a backup with something else; what is in it may be there already."""
        self._database.check_restorable(archive.manifest.revision)
        foreign = set(self._artifacts.keys("")) - keys
        if foreign:
            raise Conflict(
                f"there are {len(foreign)} artifacts already that are not in the backup, such as {min(foreign)}: "
                "restore into an empty place (ARTIFACTS_URL, or MODEL_DIR)"
            )
        foreign = set(self._features.backbones()) - digests
        if foreign:
            raise Conflict(
                f"there are features already that are not in the backup, of backbone {min(foreign)}: "
                "restore into an empty MODEL_DIR"
            )
        has_secret = SECRET in archive.manifest.entries and self._secret_path.exists()
        if has_secret and archive.read(SECRET) != self._secret_path.read_bytes():
            raise Conflict(
                f"{self._secret_path} is another one than in the backup: remove it, or use an empty MODEL_DIR"
            )

    def _restore_secret(self, archive: ArchiveReader) -> None:
        if SECRET in archive.manifest.entries and not self._secret_path.exists():
            self._secret_path.touch(mode=0o600)
            self._secret_path.write_bytes(archive.read(SECRET))


class _Counted:
    """Counts what it hands on."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.n = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.n += 1
            yield line


def _names_by(archive: ArchiveReader, prefix: str, separator: str) -> dict[str, list[str]]:
    """Return the entries below a prefix by the part of their name before the separator."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in archive.names(prefix):
        key, _, rest = name.removeprefix(prefix).partition(separator)
        if not rest:
            raise InvalidRequest(f"{name} in the backup belongs to nothing: take another backup")
        found[key].append(name)
    return found
