"""A backup, taken while others write, put into an empty place of any kind: the same suggestions come out of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.database import SqlDatabase
from backend.adapters.features import FeatureFiles
from backend.adapters.object_storage import ObjectStorage
from backend.adapters.shared_artifacts import SharedArtifacts
from backend.adapters.shared_features import SharedFeatures
from backend.archive import ArchiveWriter
from backend.domain import JobKind, Suggestion
from backend.errors import ConfigurationError, Conflict, InvalidRequest
from backend.ports import DatabaseDump
from backend.promotion import version_key
from backend.services.backup import Backup
from tests.factories import NOON, make_task
from tests.object_storage import S3Server
from tests.postgresql import LocalPostgresql
from tests.world import PROJECT, World, pets


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    if request.param == "sqlite":
        return lambda name: f"sqlite:///{tmp_path / name}.sqlite3"
    server: LocalPostgresql = request.getfixturevalue("postgresql_server")
    return lambda _: server.new_database()


@pytest.fixture
def learned(tmp_path: Path, new_url: Callable[[str], str]) -> Iterator[World]:
    database = SqlDatabase(new_url("first"))
    database.migrate()
    world = World(tmp_path / "first", database)
    (tmp_path / "first").mkdir(exist_ok=True)
    world.learn(pets(12))
    (world.folder / "webhook_secret").write_text("a secret")
    yield world
    database.close()


def backup_of(world: World) -> Backup:
    return Backup(world.database, world.artifacts, world.features, world.folder / "webhook_secret")


def suggestions(world: World) -> list[Suggestion]:
    answers = [world.predict(make_task(task_id, name)) for task_id, name in pets(12).items()]
    return [result for answer in answers for result in answer.results if isinstance(result, Suggestion)]


def assert_suggested(world: World, expected: list[Suggestion]) -> None:
    """Hold suggestions against others up to rounding, which on some processors depends on what is scored together."""
    found = suggestions(world)
    assert len(found) == 12
    assert [replace(each, score=0.0) for each in found] == [replace(each, score=0.0) for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], rel=1e-6)


def restored_world(folder: Path, url: str, file: Path) -> World:
    """What a new machine has after a restore; the embedder is down, so that nothing can be embedded again."""
    folder.mkdir(exist_ok=True)
    database = SqlDatabase(url)
    artifacts, features = LocalArtifacts(folder / "artifacts"), FeatureFiles(folder / "features")
    try:
        Backup(database, artifacts, features, folder / "webhook_secret").restore(file)
    finally:
        database.close()
    world = World(folder, database)
    world.embedder.down = True
    return world


def rows(database: SqlDatabase) -> dict[str, list[dict[str, object]]]:
    with database.dump() as dump:
        return {name: [json.loads(line) for line in lines] for name, lines in dump.tables.items()}


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_the_same_suggestions_come_out(
    learned: World, tmp_path: Path, target: str, request: pytest.FixtureRequest
) -> None:
    before = suggestions(learned)
    assert all(isinstance(result, Suggestion) for result in before)
    contents = backup_of(learned).write(tmp_path / "backup")
    url = f"sqlite:///{tmp_path / 'second.sqlite3'}"
    if target == "postgresql":
        url = request.getfixturevalue("postgresql_server").new_database()
    restored = restored_world(tmp_path / "second", url, tmp_path / "backup")
    assert contents.n_artifacts == 1
    assert rows(restored.database) == rows(learned.database)
    assert contents.n_rows == sum(map(len, rows(learned.database).values()))
    shutil.rmtree(learned.folder / "artifacts")
    assert_suggested(restored, before)
    assert (restored.folder / "webhook_secret").read_text() == "a secret"
    assert (restored.folder / "webhook_secret").stat().st_mode & 0o777 == 0o600
    restored.finish_jobs()
    with restored.database.transaction() as stores:
        known = {job.id for job in stores.jobs.all(PROJECT)}
        assert stores.jobs.enqueue(PROJECT, JobKind.SYNC, NOON, NOON).id not in known, (
            "ids go on after the restored ones"
        )
    restored.embedder.down = False
    restored.label({1: "cat"})
    restored.fit()
    assert restored.active.name.startswith(f"p{PROJECT}-v2-")
    restored.database.close()


def test_a_backup_taken_while_others_write_is_of_one_moment(learned: World, tmp_path: Path) -> None:
    """Every transaction adds a task and its annotation: no backup may hold one without the other."""
    done = threading.Event()

    def write() -> None:
        for task_id in range(1000, 1150):
            learned.see_tasks({task_id: "cat"})
            learned.label({task_id: "cat"})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    number = 0
    while not done.is_set() or number < 2:
        file = tmp_path / f"backup-{number}"
        backup_of(learned).write(file)
        with zipfile.ZipFile(file) as archive:
            task_ids = {json.loads(line)["id"] for line in archive.read("database/task.jsonl").splitlines()}
            labelled = {json.loads(line)["task_id"] for line in archive.read("database/annotation.jsonl").splitlines()}
        assert labelled <= task_ids
        assert len(task_ids) - len(labelled) <= 1
        counts.append(len(task_ids))
        number += 1
    writer.join()
    assert counts == sorted(counts)
    restored = restored_world(tmp_path / "second", f"sqlite:///{tmp_path / 'second.sqlite3'}", file)
    assert_suggested(restored, suggestions(learned))
    restored.database.close()


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_what_is_removed_meanwhile_is_in_it_whole(
    learned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker removes old versions whenever it likes."""
    key = version_key(PROJECT, learned.active.name)
    names = {path.name for path in learned.artifacts.fetch(key).iterdir()}
    add_file = ArchiveWriter.add_file

    def add_and_remove(archive: ArchiveWriter, name: str, source: IO[bytes]) -> None:
        add_file(archive, name, source)
        learned.artifacts.delete(key)

    monkeypatch.setattr(ArchiveWriter, "add_file", add_and_remove)
    backup_of(learned).write(tmp_path / "backup")
    with zipfile.ZipFile(tmp_path / "backup") as file:
        added = {name.rpartition("/")[2] for name in file.namelist() if name.startswith(f"artifacts/{key}/")}
    assert len(names) > 1
    assert added == names


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
class TestRefusals:
    def test_nothing_is_written_before_everything_was_checked(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        with zipfile.ZipFile(tmp_path / "backup") as file:
            entries = {name: file.read(name) for name in file.namelist()}
        # Rows are written last.
        entries["database/task.jsonl"] = entries["database/task.jsonl"].replace(b'"id"', b'"ID"', 1)
        with zipfile.ZipFile(tmp_path / "altered", "w") as file:
            for name, content in entries.items():
                file.writestr(name, content)
        with pytest.raises(InvalidRequest, match=r"task\.jsonl in the backup was altered"):
            restored_world(tmp_path / "second", f"sqlite:///{tmp_path / 'second.sqlite3'}", tmp_path / "altered")
        assert not list((tmp_path / "second").rglob("*.safetensors"))
        assert not (tmp_path / "second" / "webhook_secret").exists()

    def test_features_that_are_not_in_the_backup(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        second = tmp_path / "second"
        row = np.ones((1, 3), np.float16)
        FeatureFiles(second / "features").append("e" * 64, ["a" * 64], row, block_sizes=(3,))
        with pytest.raises(Conflict, match=f"features already.*{'e' * 64}"):
            restored_world(second, f"sqlite:///{tmp_path / 'second.sqlite3'}", tmp_path / "backup")

    def test_a_database_with_projects(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        before = rows(learned.database)
        with pytest.raises(Conflict, match="1 projects already: restore into an empty one"):
            backup_of(learned).restore(tmp_path / "backup")
        assert rows(learned.database) == before

    def test_other_versions_features_or_secrets(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        url = f"sqlite:///{tmp_path / 'second.sqlite3'}"
        second = tmp_path / "second"
        second.mkdir()
        (second / "webhook_secret").write_text("another")
        with pytest.raises(Conflict, match="another one than in the backup"):
            restored_world(second, url, tmp_path / "backup")
        (second / "webhook_secret").unlink()
        with LocalArtifacts(second / "artifacts").scratch() as folder:
            (folder / "x").write_text("x")
            LocalArtifacts(second / "artifacts").publish("versions/p1/other", folder)
        with pytest.raises(Conflict, match="versions/p1/other"):
            restored_world(second, url, tmp_path / "backup")
        LocalArtifacts(second / "artifacts").delete("versions/p1/other")
        restored_world(second, url, tmp_path / "backup").database.close()

    def test_an_altered_backup_leaves_the_place_empty(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        content = bytearray((tmp_path / "backup").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "backup").write_bytes(bytes(content))
        with pytest.raises(InvalidRequest, match="backup"):
            restored_world(tmp_path / "second", f"sqlite:///{tmp_path / 'second.sqlite3'}", tmp_path / "backup")
        assert not list((tmp_path / "second").rglob("*.safetensors"))

    def test_a_backup_of_a_newer_tandem(self, learned: World, tmp_path: Path) -> None:
        backup_of(learned).write(tmp_path / "backup")
        with zipfile.ZipFile(tmp_path / "backup") as file:
            entries = {name: file.read(name) for name in file.namelist()}
        entries["manifest.json"] = json.dumps(json.loads(entries["manifest.json"]) | {"revision": "9999"}).encode()
        with zipfile.ZipFile(tmp_path / "newer", "w") as file:
            for name, content in entries.items():
                file.writestr(name, content)
        with pytest.raises(ConfigurationError, match=r"revision '9999'.*newer Tandem"):
            restored_world(tmp_path / "second", f"sqlite:///{tmp_path / 'second.sqlite3'}", tmp_path / "newer")

    def test_one_that_was_broken_off_can_be_done_again(
        self, learned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backup_of(learned).write(tmp_path / "backup")
        url = f"sqlite:///{tmp_path / 'second.sqlite3'}"

        def break_off(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(SqlDatabase, "restore", break_off)
            with pytest.raises(KeyboardInterrupt):
                restored_world(tmp_path / "second", url, tmp_path / "backup")
        restored = restored_world(tmp_path / "second", url, tmp_path / "backup")
        assert_suggested(restored, suggestions(learned))
        restored.database.close()


def test_an_older_backup_is_brought_up_to_date(tmp_path: Path) -> None:
    """As the first revision of the schema was: without the columns and tables that came later."""
    project = {
        "id": 5,
        "label_studio_id": 5,
        "created_stamp": 1,
        "title": "pets",
        "label_config": {},
        "problems": [],
        "last_version_number": 3,
    }
    task = {"project_id": 5, "id": 1, "image_url": "/1.jpg"}
    database = SqlDatabase(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    lines = {"project": [json.dumps(project).encode()], "task": [json.dumps(task).encode()]}
    assert database.restore(DatabaseDump(revision="0001", tables=lines)) == 2
    found = rows(database)
    assert found["task"][0]["drawn_at_random"] is False
    assert found["project"][0]["last_version_number"] == 3
    database.check_schema()
    database.close()


@pytest.mark.parametrize(
    "tables",
    [
        {"sqlite_master": [b'{"name": "x"}']},
        {"task": [b'{"project_id": 77, "nonsense; DROP TABLE": 1}']},
        {"task": [b"[1, 2]"]},
        {"task": [b"no json"]},
        {"project": [b'{"id": 5, "synced_at": "yesterday"}']},
    ],
)
def test_rows_that_are_none_of_ours_leave_nothing(tmp_path: Path, tables: dict[str, list[bytes]]) -> None:
    database = SqlDatabase(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    with pytest.raises(InvalidRequest, match="backup"):
        database.restore(DatabaseDump(revision="0004", tables=tables))
    database.migrate()
    assert not any(rows(database).values())
    database.close()


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_into_object_storage_by_the_command(
    learned: World, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From folders into a bucket, and a third machine serves from that."""
    before = suggestions(learned)
    learned.database.close()
    (tmp_path / "first.sqlite3").rename(learned.folder / "tandem.sqlite3")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.new_bucket()

    def tandem(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backend", *arguments], capture_output=True, text=True, timeout=200, check=False
        )

    monkeypatch.setenv("MODEL_DIR", str(learned.folder))
    done = tandem("backup", str(tmp_path / "backup"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["artifacts"] == 1
    again = tandem("backup", str(tmp_path / "backup"))
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "second"))
    monkeypatch.setenv("ARTIFACTS_URL", f"s3://{bucket}/tandem")
    done = tandem("restore", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    again = tandem("restore", str(tmp_path / "backup"))
    assert (again.returncode, "projects already" in again.stderr) == (1, True)

    third = tmp_path / "third"
    third.mkdir()
    database = SqlDatabase(f"sqlite:///{tmp_path / 'second' / 'tandem.sqlite3'}")
    storage = ObjectStorage(f"s3://{bucket}/tandem")
    world = World(
        third,
        database,
        artifacts=SharedArtifacts(storage, third / "cache", max_cache_bytes=2**20),
        features=SharedFeatures(FeatureFiles(third / "features"), storage, third / "exchange", patience_s=60),
    )
    world.embedder.down = True
    assert_suggested(world, before)
    database.close()
