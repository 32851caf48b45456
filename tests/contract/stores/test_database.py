"""What the database promises as a whole: transactions, several processes at once, failures and migrations."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.adapters.database import SqlDatabase, connections, migrations, sql_database
from backend.adapters.database.tables import metadata, project_table
from backend.background_process import free_port
from backend.domain import Annotation, JobKind, LabelConfig, LabelSchema, Project, ProjectIdentity, Task
from backend.errors import ConfigurationError, StoreUnavailable
from backend.ports import Database, Stores
from tests.postgresql import LocalPostgresql, NoPostgresql

NOON = datetime(2026, 5, 17, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


@contextmanager
def own_postgresql() -> Iterator[LocalPostgresql]:
    """Lend a server that a test may do anything to."""
    try:
        server = LocalPostgresql().__enter__()
    except NoPostgresql as error:
        pytest.skip(str(error))
    with ExitStack() as stack:
        stack.push(server.__exit__)
        yield server


def _read_slowly(opened: Callable[[], AbstractContextManager[Stores]]) -> None:
    with opened() as stores:
        stores.projects.all()
        time.sleep(1)
        stores.projects.all()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.sqlite3'}"


class TestTransactions:
    def test_what_raises_is_undone(self, database: Database, project: Project) -> None:
        def fail_half_way() -> None:
            with database.transaction() as stores:
                stores.tasks.upsert(project.id, [Task(id=1, image_url="/1.jpg")])
                raise LookupError("half way")

        with pytest.raises(LookupError):
            fail_half_way()
        with database.snapshot() as stores:
            assert stores.tasks.all(project.id) == []

    def test_a_snapshot_cannot_write(self, database: Database, project: Project) -> None:
        with database.snapshot() as stores, pytest.raises(sqlalchemy.exc.DBAPIError, match=r"read-?only"):
            stores.tasks.upsert(project.id, [Task(id=1, image_url="/1.jpg")])
        with database.transaction() as stores:
            assert stores.tasks.upsert(project.id, [Task(id=1, image_url="/1.jpg")]) == 1

    def test_a_snapshot_stays_as_it_was_and_blocks_nobody(self, database: Database, project: Project) -> None:
        with database.snapshot() as before:
            assert before.tasks.count(project.id) == 0
            with database.transaction() as stores:
                stores.tasks.upsert(project.id, [Task(id=1, image_url="/1.jpg")])
            assert before.tasks.count(project.id) == 0
        with database.snapshot() as after:
            assert after.tasks.count(project.id) == 1

    def test_rows_of_an_unknown_project_are_refused(self, database: Database) -> None:
        with database.transaction() as stores, pytest.raises(sqlalchemy.exc.IntegrityError):
            stores.tasks.upsert(77, [Task(id=1, image_url="/1.jpg")])


class TestConcurrency:
    def test_threads_that_read_and_write_lose_nothing(self, database: Database) -> None:
        identity = ProjectIdentity(label_studio_id=5, created_stamp=1)

        def number(_: int) -> int:
            with database.transaction() as stores:
                return stores.versions.next_number(stores.projects.resolve(identity).id)

        with ThreadPoolExecutor(8) as threads:
            numbers = list(threads.map(number, range(80)))
        assert sorted(numbers) == list(range(1, 81))
        with database.snapshot() as stores:
            assert len(stores.projects.all()) == 1

    def test_each_job_is_claimed_by_one_process(self, database: Database, database_url: str) -> None:
        with database.transaction() as stores:
            for label_studio_id in range(1, 16):
                project = stores.projects.resolve(ProjectIdentity(label_studio_id=label_studio_id, created_stamp=1))
                for kind in (JobKind.HEAD, JobKind.SYNC):
                    stores.jobs.enqueue(project.id, kind, NOON, NOON)
        workers = [python(CLAIM_ALL, database_url, f"w{number}") for number in range(2)]
        claimed = [line for worker in workers for line in worker.communicate(timeout=60)[0].split()]
        assert len(claimed) == len(set(claimed)) == 30

    def test_a_killed_writer_leaves_neither_half_a_transaction_nor_a_lock(
        self, database: Database, database_url: str, project: Project
    ) -> None:
        writer = python(STOP_HALF_WAY, database_url)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half way\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with database.transaction() as stores:
            assert [task.id for task in stores.tasks.all(project.id)] == [1]
        writer.stdout.close()

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(order=st.permutations(range(8)), cut=st.integers(0, 8))
    def test_the_order_in_which_old_events_come_does_not_matter(
        self, database: Database, order: list[int], cut: int
    ) -> None:
        with database.transaction() as stores:
            n_projects = len(stores.projects.all())
            project = stores.projects.resolve(ProjectIdentity(label_studio_id=n_projects + 1, created_stamp=1))
            stores.tasks.upsert(project.id, [Task(id=1, image_url="/1.jpg")])
            history = [
                Annotation(id=1, task_id=1, class_names=(f"answer {each}",), updated_at=NOON + each * SECOND)
                for each in range(8)
            ]
            for each in order:
                if each == cut:
                    stores.annotations.delete(project.id, [1], history[each].updated_at)
                elif each < cut:
                    stores.annotations.upsert(project.id, [history[each]])
            for each in order:
                if each != cut:
                    stores.annotations.upsert(project.id, [history[each]])
            newest = history[7] if cut != 7 else None
            assert stores.annotations.all(project.id) == ([newest] if newest else [])


CLAIM_ALL = """
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from backend.adapters.database import SqlDatabase
from backend.domain import JobKind
database, now = SqlDatabase(sys.argv[1]), datetime.now(UTC)
while True:
    with database.transaction() as stores:
        job = stores.jobs.claim(list(JobKind), sys.argv[2], now, now + timedelta(seconds=30))
    if job is None:
        break
    print(job.id)
"""

STOP_HALF_WAY = """
import sys, time
from backend.adapters.database import SqlDatabase
from backend.domain import Task
database = SqlDatabase(sys.argv[1])
with database.transaction() as stores:
    stores.tasks.upsert(5, [Task(id=1, image_url="/1.jpg")])
with database.transaction() as stores:
    stores.tasks.upsert(5, [Task(id=2, image_url="/2.jpg")])
    print("half way", flush=True)
    time.sleep(60)
"""


class TestFailures:
    @pytest.mark.parametrize(("in_same_process", "problem"), [(True, "was in use"), (False, "database is locked")])
    def test_a_lock_that_is_never_released(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, in_same_process: bool, problem: str
    ) -> None:
        for module in (connections, sql_database):
            monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.05)
        database = SqlDatabase(sqlite_url)
        database.migrate()
        # another process has another object
        other = database if in_same_process else SqlDatabase(sqlite_url)

        def write() -> None:
            with other.transaction() as stores:
                stores.projects.all()

        with database.transaction():
            thread = _Outcome(write)
            with pytest.raises(StoreUnavailable, match=problem):
                thread.result()
        write()
        other.close()
        database.close()

    def test_a_full_disk(self, sqlite_url: str) -> None:
        database = SqlDatabase(sqlite_url)
        database.migrate()
        sqlalchemy.event.listen(
            database._engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1")
        )

        def fill() -> None:
            with database.transaction() as stores:
                project = stores.projects.resolve(ProjectIdentity(label_studio_id=5, created_stamp=1))
                stores.tasks.upsert(project.id, [Task(id=each, image_url="/x.jpg" * 20) for each in range(1000)])

        with pytest.raises(StoreUnavailable, match="full"):
            fill()
        with database.snapshot() as stores:
            assert stores.projects.all() == []
        database.close()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("not a database at all, but long enough to be looked at " * 10)
        with pytest.raises(StoreUnavailable, match="not a database"):
            SqlDatabase(f"sqlite:///{tmp_path / 'text'}").migrate()

    def test_nothing_is_found_where_nothing_can_be_reached(self, tmp_path: Path) -> None:
        identity = ProjectIdentity(label_studio_id=5, created_stamp=1)
        with pytest.raises(StoreUnavailable, match="unable to open database file"):
            SqlDatabase(f"sqlite:///{tmp_path / 'missing' / 'tandem.sqlite3'}").find(identity, [1])
        with pytest.raises(StoreUnavailable, match="cannot be used now"):
            SqlDatabase(f"postgresql://tandem@127.0.0.1:{free_port()}/tandem").find(identity, [1])

    def test_a_file_that_breaks_while_it_is_read(self, sqlite_url: str) -> None:
        database = SqlDatabase(sqlite_url)
        database.migrate()
        path = Path(sqlalchemy.make_url(sqlite_url).database or "")
        with database.snapshot() as stores:
            assert stores.projects.find(ProjectIdentity(label_studio_id=5, created_stamp=1)) is None
        database.close()
        path.write_bytes(path.read_bytes()[:4096] + b"broken" * 10_000)
        with pytest.raises(StoreUnavailable, match="malformed"), database.snapshot() as stores:
            stores.projects.find(ProjectIdentity(label_studio_id=5, created_stamp=1))
        database.close()

    def test_a_query_of_ours_that_is_wrong_is_no_trouble_of_the_database(self, sqlite_url: str) -> None:
        database = SqlDatabase(sqlite_url)
        database.migrate()
        with database.transaction() as stores:
            stores.projects._connection.exec_driver_sql("DROP TABLE version")  # type: ignore[attr-defined]
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="no such table"), database.snapshot() as stores:
            stores.versions.active(1)
        database.close()

    def test_a_standby_until_it_is_promoted(self) -> None:
        identity = ProjectIdentity(label_studio_id=5, created_stamp=1)
        with own_postgresql() as server:
            database = SqlDatabase(server.new_database())
            database.migrate()
            with database.transaction() as stores:
                project = stores.projects.resolve(identity)
            server.become_standby()
            for _ in range(2):
                with pytest.raises(StoreUnavailable), database.transaction() as stores:
                    stores.projects.save(project)
            with database.snapshot() as stores:
                assert stores.projects.find(identity) == project
            server.promote()
            with database.transaction() as stores:
                stores.projects.save(replace(project, title="Pets"))
            database.close()

    def test_a_process_that_was_suspended_in_a_transaction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        short = connections.POSTGRESQL_SETTINGS + " -c idle_in_transaction_session_timeout=500"
        monkeypatch.setattr(connections, "POSTGRESQL_SETTINGS", short)
        with own_postgresql() as server:
            database = SqlDatabase(server.new_database())
            database.migrate()
            for opened in (database.transaction, database.snapshot):
                with pytest.raises(StoreUnavailable):
                    _read_slowly(opened)
            database.close()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="unable to open database file"):
            SqlDatabase(f"sqlite:///{tmp_path / 'missing' / 'tandem.sqlite3'}").migrate()

    @pytest.mark.parametrize("url", ["tandem.sqlite3", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@host/name"])
    def test_a_url_that_cannot_be_used(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="DATABASE_URL") as caught:
            SqlDatabase(url)
        assert "secret" not in str(caught.value)


class _Outcome:
    """Runs a function in another thread, and raises here what it raised there."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: Exception | None = None

        def run() -> None:
            try:
                function()
            except StoreUnavailable as error:
                self._error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> None:
        self._thread.join()
        if self._error:
            raise self._error


class TestRowsOfEarlierTandems:
    def test_a_label_config_without_synonyms(self, database: Database, project: Project) -> None:
        schema = LabelSchema(control_name="choice", object_name="image", data_key="image", class_names=("cat", "dog"))
        stored = asdict(LabelConfig(schema=schema))
        del stored["schema"]["synonyms"]
        with database._engine.begin() as connection:
            connection.execute(sqlalchemy.update(project_table).values(label_config=stored))
        with database.snapshot() as stores:
            assert stores.projects.get(project.id).schema == schema


class TestMigrations:
    def test_the_migrations_make_the_tables_of_the_code(self, database: SqlDatabase) -> None:
        with database._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []

    def test_the_code_knows_the_last_revision(self) -> None:
        scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
        assert scripts.get_heads() == [migrations.HEAD_REVISION]

    def test_a_current_database_needs_no_alembic(self, database_url: str) -> None:
        script = (
            "import sys\nfrom backend.adapters.database import SqlDatabase\n"
            "SqlDatabase(sys.argv[1]).migrate()\nprint([name for name in sys.modules if name == 'alembic'])"
        )
        assert python(script, database_url).communicate(timeout=60)[0] == "[]\n"

    def test_a_database_of_a_newer_tandem_is_refused(self, database: SqlDatabase) -> None:
        with database._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        try:
            with pytest.raises(ConfigurationError, match=r"revision '9999'.*newer Tandem"):
                database.migrate()
        finally:
            with database._engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{migrations.HEAD_REVISION}'")

    def test_several_at_once_migrate_a_new_database(self, new_database_url: str) -> None:
        with ThreadPoolExecutor(6) as threads:
            for done in [threads.submit(SqlDatabase(new_database_url).migrate) for _ in range(6)]:
                done.result()
        database = SqlDatabase(new_database_url)
        with database.snapshot() as stores:
            assert stores.projects.all() == []
        database.close()

    def test_writes_survive_a_power_cut_and_never_block_readers(self, database: SqlDatabase) -> None:
        if database._engine.dialect.name != "sqlite":
            pytest.skip("PostgreSQL does so by default")
        path = database._engine.url.database
        assert path is not None
        with database._engine.begin() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        outside = sqlite3.connect(path)
        assert outside.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        outside.close()
