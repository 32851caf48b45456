"""Marks of the state: equal ones mean that nobody has committed anything in between."""

from __future__ import annotations

import sqlite3
import threading
from typing import Protocol

from sqlalchemy import Engine, PoolProxiedConnection

from backend.errors import StoreUnavailable


class Revision(Protocol):
    """Tells whether the state may have changed, for much less than reading it."""

    def read(self) -> str:
        """Return the mark of what a snapshot opened now would show."""

    def close(self) -> None:
        """Close what reading it has opened."""


def revision_of(engine: Engine, reading: Engine) -> Revision:
    """Return what marks the state behind an engine; ``reading`` is the same engine for reading only."""
    return PostgresqlRevision(reading) if engine.dialect.name == "postgresql" else SqliteRevision(engine)


class SqliteRevision:
    """SQLite's ``data_version``: it moves, as one connection sees it, with every commit of any other.

    So one connection, which never commits anything itself, is kept for it. SQLAlchemy would take ten times as long.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: PoolProxiedConnection | None = None

    def read(self) -> str:
        """Return the mark of what a snapshot opened now would show.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._engine.raw_connection()
                driver = self._connection.driver_connection
                return str(driver and driver.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.Error as error:
                raise StoreUnavailable(f"the database {self._engine.url.database} cannot be read ({error})") from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class PostgresqlRevision:
    """PostgreSQL's current snapshot: which transactions are visible, and so exactly what a reader would see."""

    def __init__(self, reading: Engine) -> None:
        self._reading = reading.execution_options(isolation_level="AUTOCOMMIT")

    def read(self) -> str:
        """Return the mark of what a snapshot opened now would show."""
        with self._reading.connect() as connection:
            return str(connection.exec_driver_sql("SELECT pg_current_snapshot()").scalar_one())

    def close(self) -> None:
        """Nothing stays open."""
