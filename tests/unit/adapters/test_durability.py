"""What a power failure may take: nothing that was synced. So it is held what is synced, and in which order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.durable import write_whole
from backend.adapters.features import FeatureFiles
from backend.adapters.image_cache import ImageCache
from backend.archive import write_archive
from tests.numbered_rows import BACKBONE, append, digests


class Disk:
    """What was done to files below a folder, in order: ``sync rows-1a2b.f16``, ``rename .x.tmp``, by bare names."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def note(self, event: str, path: str | os.PathLike[str]) -> None:
        self.events.append(f"{event} {Path(path).name.partition('-')[0]}")

    def position(self, event: str) -> int:
        return self.events.index(event)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    def noting_sync(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            real(descriptor)
            disk.note("sync", Path(f"/proc/self/fd/{descriptor}").readlink())

        return sync

    def noting_rename(real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: str, target: str) -> None:
            real(source, target)
            disk.note("rename to", target)

        return rename

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting_sync(getattr(os, name)))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noting_rename(getattr(os, name)))
    return disk


def test_rows_are_there_before_the_keys_that_claim_them(tmp_path: Path, disk: Disk) -> None:
    store = FeatureFiles(tmp_path)
    append(store, range(3))
    disk.events.clear()
    append(store, range(3, 6))
    assert disk.events == ["sync rows", "sync keys"]


def test_a_first_row_is_found_again(tmp_path: Path, disk: Disk) -> None:
    append(FeatureFiles(tmp_path / "features"), range(3))
    header = disk.position("rename to features.json")
    assert disk.events[header - 1] == "sync .features.json.tmp"
    assert disk.events[header + 1 :] == [f"sync {BACKBONE}", "sync features", "sync rows", "sync keys"]


def test_compacted_rows_are_there_before_they_count(tmp_path: Path, disk: Disk) -> None:
    store = FeatureFiles(tmp_path)
    append(store, range(3))
    disk.events.clear()
    store.compact(BACKBONE, digests([1]))
    written = disk.events[: disk.position("rename to features.json")]
    assert {"sync rows", "sync keys", f"sync {BACKBONE}"} <= set(written)


def test_a_version_is_there_whole_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    with artifacts.scratch() as folder:
        (folder / "reports").mkdir()
        (folder / "head.bin").write_bytes(b"weights")
        (folder / "reports" / "report.json").write_bytes(b"{}")
        artifacts.publish("versions/p5/first", folder)
        contents = {"sync head.bin", "sync report.json", "sync reports", f"sync {folder.name.partition('-')[0]}"}
    named = disk.position("rename to first")
    assert set(disk.events[:named]) == contents
    assert disk.events[named + 1 :] == ["sync p5", "sync versions", "sync artifacts"]


def test_a_file_written_whole_is_there_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    write_whole(tmp_path / "file", b"content")
    assert disk.events == ["sync .file.tmp", "rename to file", f"sync {tmp_path.name.partition('-')[0]}"]


def test_an_image_is_there_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    image = ImageCache(tmp_path, 1000).store([b"image"])
    named = disk.position(f"rename to {image.digest}")
    assert [event.partition(" ")[0] for event in disk.events[:named]] == ["sync"]


def test_a_backup_is_there_when_it_is_said_to_be(tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    with write_archive(folder / "tandem.zip") as writer:
        writer.revision = "0001"
        writer.add("database.json", [b"{}"])
    assert disk.events[-2:] == ["rename to tandem.zip", "sync backups"]
    assert disk.events[0].startswith("sync .tandem.zip")
