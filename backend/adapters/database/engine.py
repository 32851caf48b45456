"""One database behind all stores: SQLite in a file by default, PostgreSQL for several machines.

There is one writer at a time on either: SQLite locks the file (``BEGIN IMMEDIATE``), PostgreSQL takes an advisory
lock. So what a transaction reads stays true until it ends, two transactions never deadlock, and no caller has to
try again. Transactions last milliseconds; nobody waits for the world inside one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from sqlalchemy import Connection, Dialect, Engine, PoolProxiedConnection, event, make_url
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

from backend.adapters.database.annotations import SqlAnnotationStore
from backend.adapters.database.backbones import SqlBackboneStore
from backend.adapters.database.dump import check_restorable, dump_rows, load_rows
from backend.adapters.database.finding import find
from backend.adapters.database.jobs import SqlJobStore
from backend.adapters.database.migrations import HEAD_REVISION, current_revision, upgrade
from backend.adapters.database.projects import SqlProjectStore
from backend.adapters.database.tables import metadata
from backend.adapters.database.tasks import SqlTaskStore
from backend.adapters.database.versions import SqlVersionStore
from backend.adapters.database.views import SqlViewStore
from backend.domain import ProjectIdentity
from backend.errors import ConfigurationError, NotFound, StoreUnavailable
from backend.ports import (
    AnnotationStore,
    BackboneStore,
    DatabaseDump,
    Found,
    JobStore,
    ProjectStore,
    TaskStore,
    VersionStore,
    ViewStore,
)

LOCK_TIMEOUT_S = 30
POSTGRESQL_LOCK_KEY = 0x74616E64656D  # "tandem"
POSTGRESQL_SETTINGS = f"-c lock_timeout={LOCK_TIMEOUT_S}s -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_S}s"


class SqlStores:
    """All stores on one connection, inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.projects: ProjectStore = SqlProjectStore(connection)
        self.tasks: TaskStore = SqlTaskStore(connection)
        self.annotations: AnnotationStore = SqlAnnotationStore(connection)
        self.jobs: JobStore = SqlJobStore(connection)
        self.versions: VersionStore = SqlVersionStore(connection)
        self.views: ViewStore = SqlViewStore(connection)
        self.backbones: BackboneStore = SqlBackboneStore(connection)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driver:
    """A connection of the driver, with none of SQLAlchemy's around it."""

    connection: PoolProxiedConnection
    dialect: Dialect


class SqlDatabase:
    """The database behind a SQLAlchemy URL, for any number of threads; make one in each process.

    Nothing is opened before the first transaction, and ``migrate`` leaves nothing open.

    Raises:
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = create_engine(url)
        self._reading = self._engine.execution_options(read_only=True)
        self._turn = threading.Lock()
        # The driver lets Python go for every few microseconds of reading: threads that read at once would spend more
        # on handing it to and fro than on reading.
        self._finding: AbstractContextManager[object] = (
            threading.Lock() if self._engine.dialect.name == "sqlite" else nullcontext()
        )
        self._idle: list[_Driver] = []
        if self._engine.dialect.name == "postgresql":
            self._reading = self._reading.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def migrate(self) -> None:
        """Bring the schema up to date; several processes may do so at once, the first one does it for all.

        Raises:
            ConfigurationError: the database was made by a newer Tandem, or its disk cannot hold it.
            StoreUnavailable: the database cannot be reached.
        """
        engine = create_engine(self._url, foreign_keys=False)
        try:
            with _unavailability_reported(engine):
                with engine.execution_options(read_only=True).connect() as connection:
                    if current_revision(connection) == HEAD_REVISION:
                        return
                if engine.dialect.name == "sqlite":
                    _use_write_ahead_log(engine)
                with engine.begin() as connection:
                    upgrade(connection)
        finally:
            engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[SqlStores]:
        """Open a write transaction: durable when the block ends, undone when it raises.

        Raises:
            StoreUnavailable: another writer did not end in time, the disk is full, or the connection was lost.
        """
        with _unavailability_reported(self._engine), self._own_turn(), self._engine.begin() as connection:
            yield SqlStores(connection)

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Let the threads of this process queue for SQLite.

        It knows no queue: who waits for the file sleeps and asks again, longer and longer, while others slip in.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        if not self._turn.acquire(timeout=LOCK_TIMEOUT_S):
            raise StoreUnavailable(f"{self._engine.url.database} was in use for {LOCK_TIMEOUT_S} s: try again")
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def snapshot(self) -> Iterator[SqlStores]:
        """Open a consistent view for reading; writing in it is an error.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with _unavailability_reported(self._reading), self._reading.begin() as connection:
            yield SqlStores(connection)

    def check_schema(self) -> None:
        """Make sure that the database can be read, and that its schema is the one that this code was written for.

        Raises:
            StoreUnavailable: it cannot be read.
            ConfigurationError: its schema is another one.
            NotFound: it has none yet.
        """
        with _unavailability_reported(self._reading), self._reading.connect() as connection:
            revision = current_revision(connection)
        if revision is None:
            raise NotFound("the database is empty yet: Tandem makes what it needs when it starts")
        if revision != HEAD_REVISION:
            raise ConfigurationError(
                f"its schema is at revision {revision!r}, this Tandem needs {HEAD_REVISION!r}: "
                "another version of Tandem uses it; run the same one everywhere"
            )

    def find(self, identity: ProjectIdentity, task_ids: Sequence[int]) -> Found | None:
        """Return a project, its active version and the known ones among these tasks; nothing where it is not known.

        Each of the three is true at the moment it is read, which is all that a suggestion needs; so a transaction,
        which would take longer than all of it, is saved.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with _unavailability_reported(self._engine), self._finding, self._lent() as connection:
            return find(connection, identity, task_ids)

    @contextmanager
    def dump(self) -> Iterator[DatabaseDump]:
        """Open all rows of one moment for reading.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with _unavailability_reported(self._reading), self._reading.begin() as connection:
            yield DatabaseDump(
                revision=HEAD_REVISION,
                tables={table.name: dump_rows(connection, table.name) for table in metadata.sorted_tables},
            )

    def check_restorable(self, revision: str) -> None:
        """Make sure that rows of this revision can be restored, and that none are lost by that.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
            StoreUnavailable: the database cannot be reached.
        """
        with _unavailability_reported(self._reading), self._reading.begin() as connection:
            check_restorable(connection, revision)

    def restore(self, dump: DatabaseDump) -> int:
        """Fill an empty database with the rows of a dump, all or none, and return how many.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
            InvalidRequest: a table or row that cannot be one of ours.
            StoreUnavailable: the database cannot be reached.
        """
        engine = create_engine(self._url, foreign_keys=False)
        try:
            with _unavailability_reported(engine):
                if engine.dialect.name == "sqlite":
                    _use_write_ahead_log(engine)
                with engine.begin() as connection:
                    return load_rows(connection, dump.revision, dump.tables)
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close all connections; who goes on opens new ones."""
        self._engine.dispose()
        while self._idle:
            self._idle.pop().connection.close()

    @contextmanager
    def _lent(self) -> Iterator[_Driver]:
        """Lend a connection; on SQLite past the pool, which takes as long to lend one as to read with it."""
        try:
            lent = self._idle.pop()
        except IndexError:
            lent = self._connect()
        try:
            yield lent
        except BaseException:
            lent.connection.close()
            raise
        if self._engine.dialect.name == "sqlite":
            self._idle.append(lent)
        else:
            lent.connection.close()

    def _connect(self) -> _Driver:
        errors = self._engine.dialect.loaded_dbapi.Error
        try:
            connection = self._engine.raw_connection()
        except errors as error:
            raise DBAPIError.instance(None, None, error, errors) from error
        if self._engine.dialect.name == "sqlite":
            connection.detach()
        return _Driver(connection=connection, dialect=self._engine.dialect)


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


_EXAMPLES = "sqlite:////data/tandem.sqlite3 or postgresql://user:password@host/name"


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


def _use_write_ahead_log(engine: Engine) -> None:
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
def _unavailability_reported(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (DatabaseError, InterfaceError, NoFreeConnection) as error:
        if _is_our_mistake(error, read_only=engine.get_execution_options().get("read_only", False)):
            raise
        shown = engine.url.render_as_string(hide_password=True)
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailable(f"the database {shown} cannot be used now ({cause}): try again, or check it") from error


def _is_our_mistake(error: Exception, *, read_only: bool) -> bool:
    """Tell a wrong statement, a broken constraint and writing in a snapshot from what happens to a database."""
    if isinstance(error, IntegrityError | ProgrammingError | DataError | InternalError | NotSupportedError):
        return True
    sqlite_error = getattr(getattr(error, "orig", None), "sqlite_errorname", None)
    return sqlite_error == "SQLITE_ERROR" or (sqlite_error == "SQLITE_READONLY" and read_only)
