"""The databases that every test of the stores runs on: SQLite and a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from backend.adapters.database import SqlDatabase
from backend.adapters.database.tables import metadata
from backend.domain import Project, ProjectIdentity
from tests.postgresql import LocalPostgresql


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def empty_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    SqlDatabase(f"sqlite:///{path}").migrate()
    return path


@pytest.fixture(scope="session")
def migrated_postgresql_url(postgresql_url: str) -> str:
    SqlDatabase(postgresql_url).migrate()
    return postgresql_url


@pytest.fixture
def database_url(database_kind: str, empty_sqlite_file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if database_kind == "sqlite":
        shutil.copy(empty_sqlite_file, tmp_path / "tandem.sqlite3")
        return f"sqlite:///{tmp_path / 'tandem.sqlite3'}"
    url: str = request.getfixturevalue("migrated_postgresql_url")
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
    engine.dispose()
    return url


@pytest.fixture
def new_database_url(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database without any table."""
    if database_kind == "sqlite":
        return f"sqlite:///{tmp_path / 'new.sqlite3'}"
    server: LocalPostgresql = request.getfixturevalue("postgresql_server")
    return server.new_database()


@pytest.fixture
def database(database_url: str) -> Iterator[SqlDatabase]:
    opened = SqlDatabase(database_url)
    yield opened
    opened.close()


@pytest.fixture
def project(database: SqlDatabase) -> Project:
    with database.transaction() as stores:
        return stores.projects.resolve(ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_000))
