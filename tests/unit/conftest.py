"""A world for each test; the database is copied from an empty one, because migrating takes a while."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from tests.world import World


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    SqlDatabase(f"sqlite:///{path}").migrate()
    return path


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    yield from new_world(tmp_path, empty_database)


@pytest.fixture
def second_world(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    (tmp_path / "second").mkdir()
    yield from new_world(tmp_path / "second", empty_database)


def new_world(folder: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, folder / "tandem.sqlite3")
    database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
    yield World(folder, database)
    database.close()
