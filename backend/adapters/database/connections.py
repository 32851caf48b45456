"""Connections to SQLite and PostgreSQL, with one writer at a time on either, and what their failures mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from backend.errors import ConfigurationError, StoreUnavailable

LOCK_TIMEOUT_S = 30
POSTGRESQL_LOCK_KEY = 0x74616E64656D  # "tandem"
POSTGRESQL_SETTINGS = f"-c lock_timeout={LOCK_TIMEOUT_S}s -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_S}s"
_EXAMPLES = "sqlite:////data/tandem.sqlite3 or postgresql://user:password@host/name"


def create_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """Return an engine with one writer at a time; migrations rebuild tables and so need ``foreign_keys`` off.

    Raises:
        ConfigurationError: the URL cannot be used.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        backend = parsed.get_backend_name()
        if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
            return _create_sqlite_engine(parsed.render_as_string(hide_password=False), foreign_keys=foreign_keys)
        if backend == "postgresql":
            return _create_postgresql_engine(parsed.render_as_string(hide_password=False))
    except ArgumentError as error:
        raise ConfigurationError(f"DATABASE_URL is not a database URL: write it like {_EXAMPLES}") from error
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"DATABASE_URL needs {error.name}: install tandem-label-studio[postgresql]") from error
    shown = parsed.render_as_string(hide_password=True)
    raise ConfigurationError(f"DATABASE_URL={shown!r} is neither an SQLite file nor PostgreSQL: write {_EXAMPLES}")


def _create_sqlite_engine(url: str, *, foreign_keys: bool) -> Engine:
    engine = create_sqlalchemy_engine(
        url,
        # The driver must not begin transactions by itself: it begins deferred ones, which fail when two of them
        # that have read both go on to write.
        connect_args={"timeout": LOCK_TIMEOUT_S, "isolation_level": None},
        # As many as there are threads, and all are kept: to open one takes longer than what it is opened for.
        pool_size=0,
    )

    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")

    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        # Only where it changes: the driver has to prepare all its statements again afterwards.
        if connection.info.get("read_only") != read_only:
            connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
            connection.info["read_only"] = read_only
        if read_only:
            # Past SQLAlchemy, which takes ten times as long: this waits for nobody, and so cannot fail.
            connection.connection.cursor().execute("BEGIN")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    return engine


def _create_postgresql_engine(url: str) -> Engine:
    engine = create_sqlalchemy_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=LOCK_TIMEOUT_S,
        connect_args={"options": POSTGRESQL_SETTINGS, "connect_timeout": 10},
    )

    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("read_only", False):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRESQL_LOCK_KEY})")

    event.listen(engine, "begin", begin)
    return engine


def use_write_ahead_log(engine: Engine) -> None:
    """Let readers of an SQLite file go on while one writes; it stays so for good.

    Raises:
        ConfigurationError: its disk cannot hold such a log.
    """
    with engine.raw_connection() as connection:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        mode = str(cursor.fetchall()[0][0])
    if mode != "wal":
        raise ConfigurationError(
            f"{engine.url.database} is on a disk where SQLite cannot keep a write-ahead log (it uses {mode!r}): "
            "put it on a local disk, or use PostgreSQL"
        )


@contextmanager
def unavailability_reported(engine: Engine) -> Iterator[None]:
    """Report what happens to a database, but no mistake of ours.

    Raises:
        StoreUnavailable: it cannot be used now.
    """
    try:
        yield
    except (DatabaseError, InterfaceError, NoFreeConnection) as error:
        if _is_our_mistake(error, read_only=engine.get_execution_options().get("read_only", False)):
            raise
        shown = engine.url.render_as_string(hide_password=True)
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailable(f"the database {shown} cannot be used now ({cause}): try again, or check it") from error


WRITES_WHILE_READ_ONLY = "25006"
PASSING_STATES = {WRITES_WHILE_READ_ONLY, "25P03", "0A000"}
"""SQLSTATEs that psycopg takes for mistakes: PostgreSQL is a standby for now, or has ended a transaction because the
process that had begun it was suspended."""


def _is_our_mistake(error: Exception, *, read_only: bool) -> bool:
    """Tell a wrong statement, a broken constraint and writing in a snapshot from what happens to a database."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if state in PASSING_STATES:
        return read_only and state == WRITES_WHILE_READ_ONLY
    if isinstance(error, IntegrityError | ProgrammingError | DataError | InternalError | NotSupportedError):
        return True
    sqlite_error = getattr(getattr(error, "orig", None), "sqlite_errorname", None)
    return sqlite_error == "SQLITE_ERROR" or (sqlite_error == "SQLITE_READONLY" and read_only)
