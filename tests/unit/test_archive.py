"""Archives: whole or not there, and nothing in one is believed."""

from __future__ import annotations

import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.archive import read_archive, write_archive
from backend.errors import Conflict, InvalidRequest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with write_archive(tmp_path / "backup") as archive:
        archive.revision = "0004"
        archive.add("database/task.jsonl", [b'{"id": 1}\n{"id"', b": 2}\n"], compressed=True)
        archive.add("artifacts/a/_/weights.bin", [b"weights" * 1000])
    return tmp_path / "backup"


def alter(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)


def manifest_with(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entries["manifest.json"] = json.dumps(json.loads(entries["manifest.json"]) | changes).encode()

    return change


def test_what_was_added_is_read(path: Path, tmp_path: Path) -> None:
    with read_archive(path) as archive:
        archive.verify()
        assert archive.manifest.revision == "0004"
        assert archive.names("database/") == ["database/task.jsonl"]
        assert list(archive.lines("database/task.jsonl")) == [b'{"id": 1}', b'{"id": 2}']
        archive.copy("artifacts/a/_/weights.bin", tmp_path / "x" / "weights.bin")
        assert (tmp_path / "x" / "weights.bin").read_bytes() == archive.read("artifacts/a/_/weights.bin")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds a secret"


def test_one_that_was_broken_off_is_not_there(tmp_path: Path) -> None:
    def break_off() -> None:
        with write_archive(tmp_path / "backup") as archive:
            archive.add("a", [b"a"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Conflict, match="exists already"), write_archive(path):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "a//b", "", ".hidden", "a\\b", "a/__/b"])
def test_a_name_that_could_leave_its_place(path: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"), write_archive(tmp_path / "other") as archive:
        archive.add(name, [b"x"])

    def rename(entries: dict[str, bytes]) -> None:
        manifest = json.loads(entries["manifest.json"])
        manifest["entries"][name] = manifest["entries"].pop("artifacts/a/_/weights.bin")
        entries["manifest.json"] = json.dumps(manifest).encode()
        entries[name or "empty"] = entries.pop("artifacts/a/_/weights.bin")

    alter(path, rename)
    with pytest.raises(InvalidRequest, match="not the name"), read_archive(path):
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entries: entries.update({"artifacts/a/_/weights.bin": b"WEIGHTS" * 1000}), "altered"),
        (lambda entries: entries.update({"artifacts/a/_/weights.bin": b"weights"}), "altered"),
        (lambda entries: entries.update({"artifacts/a/_/weights.bin": b"weights" * 10_000_000}), "altered"),
        (lambda entries: entries.update({"extra": b"x"}), "other entries than its manifest"),
        (lambda entries: entries.pop("database/task.jsonl"), "other entries than its manifest"),
        (lambda entries: entries.pop("manifest.json"), "cut off"),
        (manifest_with(format_version=2), "a newer one may"),
        (manifest_with(format="another"), "is no backup that this Tandem knows"),
        (manifest_with(revision="../x"), "is no backup that this Tandem knows"),
    ],
)
def test_an_altered_one_is_refused(path: Path, change: Callable[[dict[str, bytes]], None], reason: str) -> None:
    alter(path, change)
    with pytest.raises(InvalidRequest, match=reason), read_archive(path) as archive:
        archive.verify()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_one_cut_off_anywhere_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidRequest, match="no backup"), read_archive(path):
        pass


def test_a_flipped_bit_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"weightsweights") + 100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidRequest, match=r"weights\.bin in the backup"), read_archive(path) as archive:
        archive.verify()


def test_a_compressed_entry_that_cannot_be_expanded_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        header = file.getinfo("database/task.jsonl").header_offset
    content = bytearray(path.read_bytes())
    # lengths of name and further fields, which the compressed bytes come after
    beginning = header + 30 + sum(struct.unpack_from("<HH", content, header + 26))
    content[beginning] |= 0b110  # a kind of block that there is not (RFC 1951)
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidRequest, match=r"task\.jsonl in the backup"), read_archive(path) as archive:
        archive.verify()


def test_no_file_at_all(tmp_path: Path) -> None:
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidRequest, match="is no backup that can be read"), read_archive(missing):
            pass


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidRequest, match="not-mounted/backup cannot be written: No such file"),
        write_archive(tmp_path / "not-mounted" / "backup"),
    ):
        pass
