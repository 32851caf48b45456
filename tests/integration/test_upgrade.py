"""State that an earlier Tandem left is served by today's, and left alone by that earlier one afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from backend.adapters.database import SqlDatabase, migrations
from backend.adapters.database.tables import metadata
from backend.domain import Suggestion
from tests.world import PROJECT, World, pets

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(migrations.__file__).parent
EARLIER_REVISIONS = [
    script.revision
    for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()
    if script.revision != migrations.HEAD_REVISION
]
WITHOUT_A_RELEASE = "6ff37fdd51fa"
"""Where no release is tagged: the last commit before the database got its fourth revision."""

LEARN = """
import sys, json
from pathlib import Path
from backend.adapters.database import SqlDatabase
from tests.world import World, pets
folder = Path(sys.argv[1])
database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
database.migrate()
world = World(folder, database)
world.learn(pets(12))
world.learn(pets(4, start=20))
print(json.dumps([version.name for version in world.versions]))
"""
PREDICT = """
import sys, json
from pathlib import Path
from backend.adapters.database import SqlDatabase
from tests.world import World
folder = Path(sys.argv[1])
database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
database.migrate()
world = World(folder, database)
answer = world.predict(*world.tasks.values())
print(json.dumps([[result.task_id, result.class_names, result.score, result.version] for result in answer.results]))
"""


def suggested(world: World) -> list[list[Any]]:
    results = world.predict(*world.tasks.values()).results
    assert all(isinstance(result, Suggestion) for result in results)
    return json.loads(
        json.dumps([[each.task_id, each.class_names, each.score, each.version] for each in results])  # type: ignore[union-attr]
    )


def rows_of(database: SqlDatabase) -> dict[str, list[Any]]:
    """Everything that the stores tell, whatever the tables look like."""
    with database.snapshot() as stores:
        return {
            "projects": stores.projects.all(),
            "tasks": stores.tasks.all(PROJECT),
            "annotations": stores.annotations.all(PROJECT),
            "jobs": stores.jobs.all(PROJECT),
            "versions": stores.versions.all(PROJECT),
        }


def opened(folder: Path) -> SqlDatabase:
    return SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")


def make_earlier(folder: Path, revision: str) -> None:
    """Put a database of an earlier revision in the place of today's, with all rows that it has room for."""
    today = folder / "today.sqlite3"
    (folder / "tandem.sqlite3").rename(today)
    engine = sqlalchemy.create_engine(f"sqlite:///{folder / 'tandem.sqlite3'}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("ATTACH DATABASE :path AS today"), {"path": str(today)})
        tables = sqlalchemy.inspect(connection).get_table_names()
        for table in (each.name for each in metadata.sorted_tables if each.name in tables):
            columns = ", ".join(column["name"] for column in sqlalchemy.inspect(connection).get_columns(table))
            connection.execute(
                sqlalchemy.text(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM today.{table}")
            )
        connection.commit()
    engine.dispose()


@pytest.mark.parametrize("revision", EARLIER_REVISIONS)
def test_a_database_of_any_earlier_revision_loses_nothing(tmp_path: Path, revision: str) -> None:
    database = opened(tmp_path)
    database.migrate()
    world = World(tmp_path, database)
    world.learn(pets(12))
    world.unlabel(3)
    expected = suggested(world)
    before = rows_of(database)
    database.close()
    with sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'tandem.sqlite3'}").connect() as connection:
        connection.execute(sqlalchemy.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    make_earlier(tmp_path, revision)

    database = opened(tmp_path)
    database.migrate()

    assert rows_of(database) == before
    assert suggested(World(tmp_path, database)) == expected
    database.check_schema()
    database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTandem:
    """The code of an earlier Tandem, run by today's interpreter and libraries."""

    root: Path
    name: str

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **settings}  # noqa: TID251 - handed on
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def tell(self, script: str, folder: Path) -> Any:
        ended = self.run("-c", script, str(folder))
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])


def git(*arguments: str) -> str | None:
    try:
        ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


@pytest.fixture
def earlier(tmp_path_factory: pytest.TempPathFactory) -> EarlierTandem:
    """The release before this one, or what there was before releases."""
    here = git("rev-parse", "HEAD")
    tags = (git("tag", "--list", "v*", "--sort=-creatordate", "--merged", "HEAD") or "").split()
    released = next((tag for tag in tags if git("rev-parse", f"{tag}^{{commit}}") != here), None)
    revision = released or WITHOUT_A_RELEASE
    if git("cat-file", "-e", f"{revision}^{{commit}}") is None:
        pytest.skip(f"this copy of the repository does not hold {revision}, or there is no git")
    root = tmp_path_factory.mktemp("earlier")
    archive = root.parent / "earlier.tar"
    assert git("archive", "--output", str(archive), revision, "backend", "model", "tests") is not None
    shutil.unpack_archive(archive, root)
    return EarlierTandem(root=root, name=revision)


def test_from_the_release_before_this_one_and_back(earlier: EarlierTandem, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    versions = earlier.tell(LEARN, folder)
    expected = earlier.tell(PREDICT, folder)
    copy = tmp_path / "copied before the upgrade"
    shutil.copytree(folder, copy)

    database = opened(folder)
    database.migrate()
    world = World(folder, database)
    assert [version.name for version in world.versions] == versions
    assert len(world.annotations) == len(world.tasks) == 16
    for here, there in zip(suggested(world), expected, strict=True):
        # What is all but certain is written more finely than it was.
        assert here == [*there[:2], pytest.approx(there[2], abs=1e-6), there[3]]
    world.label({1: "cat", 2: "dog"})
    world.fit()
    assert world.active.number == 3
    database.close()

    told = earlier.run("-m", "backend", "status", MODEL_DIR=str(folder))
    if f"{migrations.HEAD_REVISION}_" not in " ".join(path.name for path in earlier.root.rglob("versions/*.py")):
        assert told.returncode == 2
        assert "a newer Tandem made it" in told.stderr
        assert "Traceback" not in told.stderr
        database = opened(folder)
        assert World(folder, database).active.number == 3
        database.close()
    else:
        assert told.returncode == 0, told.stderr
    assert earlier.tell(PREDICT, copy) == expected
