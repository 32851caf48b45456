"""The segments of one backbone in an object storage, and what of them this machine has.

Segments are immutable objects, ``features/<backbone>/<number of rows>-<SHA-256>.safetensors``. On this machine's disk,
``outbox/`` holds segments that the storage does not have yet, ``taken.json`` names those whose rows are in the local
files, and ``lock`` keeps the processes of this machine from exchanging at the same time. Machines need no lock between
them: a segment goes only after its rows are in another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from backend.adapters.durable import exclusive_lock, write_whole
from backend.adapters.feature_segments import MAX_ROWS, Segment, merge
from backend.adapters.features import FeatureFiles, check_backbone_digest
from backend.adapters.object_storage import ObjectStorage
from backend.errors import NotFound

log = structlog.get_logger()

SMALL_ROWS = 4096
MAX_SMALL_SEGMENTS = 64
MIN_UNUSED_ROWS = 1000
MIN_UNUSED_SHARE = 0.25


class FeatureExchange:
    """Brings local files and storage to the same rows; the caller takes turns between threads."""

    def __init__(self, backbone_digest: str, files: FeatureFiles, storage: ObjectStorage, folder: Path) -> None:
        check_backbone_digest(backbone_digest)
        self._backbone_digest = backbone_digest
        self._files = files
        self._storage = storage
        self._folder = folder
        self._outbox = folder / "outbox"
        self._taken_path = folder / "taken.json"

    def post(self, segment: Segment) -> None:
        """Keep rows until the storage takes them, durably."""
        self._outbox.mkdir(parents=True, exist_ok=True)
        content = segment.to_bytes()
        write_whole(self._outbox / _object_name(content, len(segment)), content)

    def run(self) -> None:
        """Publish what waits, and append to the local files what others published.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses; what it took stays there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self._folder / "lock"):
            self._publish()
            names = self._take()
            self._merge_small(names)

    def drop_unused(self) -> None:
        """Replace all segments by new ones where most of their rows are no longer here.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses; no row that is here is lost.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self._folder / "lock"):
            self._publish()
            names = self._take()
            n_rows = self._files.count(self._backbone_digest)
            n_unused = sum(map(_n_rows, names)) - n_rows
            if n_unused <= max(MIN_UNUSED_ROWS, MIN_UNUSED_SHARE * n_rows):
                return
            self._replace(names, map(Segment.from_bytes, self._files.segments(self._backbone_digest)))
            log.info("unused features removed from the storage", backbone=self._backbone_digest, n_rows=n_unused)

    def delete(self) -> None:
        """Remove all segments, also those that wait.

        Raises:
            StoreUnavailable: the storage does not answer, or refuses; some are left.
        """
        if self._folder.is_dir():
            with exclusive_lock(self._folder / "lock"):
                for path in self._waiting():
                    path.unlink()
                self._taken_path.unlink(missing_ok=True)
        for name in self._names():
            self._storage.delete(self._path(name))

    def _publish(self) -> None:
        """Send what waits, as few segments as possible; who crashes in between sends some rows twice."""
        waiting = self._waiting()
        while waiting:
            n_taken = 1
            while n_taken < len(waiting) and sum(_n_rows(path.name) for path in waiting[: n_taken + 1]) <= MAX_ROWS:
                n_taken += 1
            some, waiting = waiting[:n_taken], waiting[n_taken:]
            name = self._send(merge([Segment.from_bytes(path.read_bytes()) for path in some]))
            self._remember(self._taken() | {name})
            for path in some:
                path.unlink()

    def _take(self) -> list[str]:
        """Append what others published to the local files; return the names of all segments."""
        names = self._names()
        taken = self._taken()
        for name in names:
            if name in taken:
                continue
            content = self._storage.read(self._path(name))
            if content is None:
                continue  # merged into another one meanwhile, which the next exchange finds
            if _object_name(content, _n_rows(name)) != name:
                log.error("features in the storage were altered and are removed", segment=self._path(name))
                self._storage.delete(self._path(name))  # else the same rows could never be published again
                continue
            try:
                self._files.add_segment(self._backbone_digest, content)
            except ValueError as error:
                log.error("features in the storage cannot be used", segment=self._path(name), reason=str(error))
            taken |= {name}
            self._remember(taken)
        if taken - set(names):
            self._remember(taken & set(names))
        return names

    def _merge_small(self, names: Sequence[str]) -> None:
        """Make one segment of many small ones, so that there are never thousands of objects to list and to fetch."""
        small = [name for name in names if _n_rows(name) < SMALL_ROWS]
        if len(small) < MAX_SMALL_SEGMENTS:
            return
        segments = []
        merged = []
        for name in small:
            content = self._storage.read(self._path(name))
            if content is not None and _object_name(content, _n_rows(name)) == name:
                segments.append(Segment.from_bytes(content))
                merged.append(name)
        self._replace(merged, _repacked(segments))

    def _replace(self, names: Sequence[str], segments: Iterable[Segment]) -> None:
        """Publish segments, then remove the others by name: those only whose rows were looked at."""
        published = {self._send(segment) for segment in segments if len(segment)}
        self._remember(self._taken() | published)
        for name in set(names) - published:
            self._storage.delete(self._path(name))

    def _send(self, segment: Segment) -> str:
        content = segment.to_bytes()
        name = _object_name(content, len(segment))
        self._storage.create(self._path(name), content)
        return name

    def _names(self) -> list[str]:
        names = (name.rpartition("/")[2] for name in self._storage.names(f"features/{self._backbone_digest}"))
        return [name for name in names if re.fullmatch(r"\d{6}-[0-9a-f]{64}\.safetensors", name)]

    def _taken(self) -> set[str]:
        """Return the segments whose rows are in the local files: none where somebody removed these."""
        try:
            self._files.block_sizes(self._backbone_digest)
            return set(json.loads(self._taken_path.read_bytes()))
        except (NotFound, FileNotFoundError):
            return set()

    def _remember(self, taken: set[str]) -> None:
        write_whole(self._taken_path, json.dumps(sorted(taken)).encode())

    def _waiting(self) -> list[Path]:
        return sorted(self._outbox.glob("*.safetensors")) if self._outbox.is_dir() else []

    def _path(self, name: str) -> str:
        return f"features/{self._backbone_digest}/{name}"


def _object_name(content: bytes, n_rows: int) -> str:
    return f"{n_rows:06d}-{hashlib.sha256(content).hexdigest()}.safetensors"


def _n_rows(name: str) -> int:
    return int(name[:6])


def _repacked(segments: Sequence[Segment]) -> list[Segment]:
    """Return the same rows in as few segments as possible."""
    packed: list[list[Segment]] = []
    for segment in segments:
        if not packed or sum(map(len, packed[-1])) + len(segment) > MAX_ROWS:
            packed.append([])
        packed[-1].append(segment)
    return [merge(each) for each in packed]
