"""What tests of real processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from tests.world import World, pets


@pytest.fixture
def learned(tmp_path: Path) -> Iterator[World]:
    """A project that has learned from a dozen pictures, on SQLite."""
    database = SqlDatabase(f"sqlite:///{tmp_path / 'tandem.sqlite3'}")
    database.migrate()
    world = World(tmp_path, database)
    world.learn(pets(12))
    yield world
    database.close()
