"""One database behind all stores: SQLite in a file by default, PostgreSQL for several machines.

There is one writer at a time on either: SQLite locks the file (``BEGIN IMMEDIATE``), PostgreSQL takes an advisory
lock. So what a transaction reads stays true until it ends, two transactions never deadlock, and no caller has to
try again. Transactions last milliseconds; nobody waits for the world inside one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Dialect, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from backend.adapters.database.annotations import SqlAnnotationStore
from backend.adapters.database.backbones import SqlBackboneStore
from backend.adapters.database.connections import (
    LOCK_TIMEOUT_S,
    create_engine,
    unavailability_reported,
    use_write_ahead_log,
)
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
        self._writing = threading.Lock()
        self._finding = threading.Lock()
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
            with unavailability_reported(engine):
                with engine.execution_options(read_only=True).connect() as connection:
                    if current_revision(connection) == HEAD_REVISION:
                        return
                if engine.dialect.name == "sqlite":
                    use_write_ahead_log(engine)
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
        with unavailability_reported(self._engine), self._own_turn(self._writing), self._engine.begin() as connection:
            yield SqlStores(connection)

    @contextmanager
    def _own_turn(self, lock: threading.Lock) -> Iterator[None]:
        """Let the threads of this process queue for SQLite.

        It knows no queue: who waits for the file to write sleeps and asks again, longer and longer, while others slip
        in. And the driver lets Python go for every few microseconds of reading: threads that read at once would spend
        more on handing it to and fro than on reading.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        if not lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise StoreUnavailable(f"{self._engine.url.database} was in use for {LOCK_TIMEOUT_S} s: try again")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def snapshot(self) -> Iterator[SqlStores]:
        """Open a consistent view for reading; writing in it is an error.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with unavailability_reported(self._reading), self._reading.begin() as connection:
            yield SqlStores(connection)

    def check_schema(self) -> None:
        """Make sure that the database can be read, and that its schema is the one that this code was written for.

        Raises:
            StoreUnavailable: it cannot be read.
            ConfigurationError: its schema is another one.
            NotFound: it has none yet.
        """
        with unavailability_reported(self._reading), self._reading.connect() as connection:
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
        with unavailability_reported(self._engine), self._own_turn(self._finding), self._lent() as connection:
            return find(connection, identity, task_ids)

    @contextmanager
    def dump(self) -> Iterator[DatabaseDump]:
        """Open all rows of one moment for reading.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with unavailability_reported(self._reading), self._reading.begin() as connection:
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
        with unavailability_reported(self._reading), self._reading.begin() as connection:
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
            with unavailability_reported(engine):
                if engine.dialect.name == "sqlite":
                    use_write_ahead_log(engine)
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
