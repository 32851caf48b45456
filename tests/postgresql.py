"""A real PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from backend.background_process import free_port

START_TIMEOUT_S = 60.0
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
# What a test database need not survive: a power cut.
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=200")


class NoPostgresql(Exception):
    """There is no server to start here; the message says why."""


class LocalPostgresql:
    """An empty server in a temporary folder, on a free port of the loopback address."""

    def __init__(self) -> None:
        self._programs = find_programs()
        self._account = unprivileged_account()
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-postgresql-"))
        self._password = secrets.token_urlsafe(16)
        self._port = free_port()
        self._n_databases = 0

    def __enter__(self) -> Self:
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        if self._account:
            for path in (self._folder, password_file):
                os.chown(path, *self._account)
        data = self._folder / "data"
        made = subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", data, "--encoding", "UTF8", "--no-locale", "--no-sync"),
                *("--username", "tandem", "--pwfile", password_file, "--auth", "scram-sha-256"),
            ],
            **self._as_account(),
            capture_output=True,
            text=True,
        )
        if made.returncode:
            shutil.rmtree(self._folder)
            raise NoPostgresql(f"initdb failed: {made.stderr.strip()[-300:]}")
        self._log = (self._folder / "log").open("wb")
        self._start()
        return self

    def _start(self) -> None:
        data = self._folder / "data"
        self._server = subprocess.Popen(
            [
                *(self._programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(self._port), "-k", ""),
                *(part for setting in QUICK for part in ("-c", setting)),
            ],
            **self._as_account(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait_until_up()

    def become_standby(self) -> None:
        """Start again as a server that only reads until it is promoted, as those of a failover do for a while."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)
        mark = self._folder / "data" / "standby.signal"
        mark.touch()
        if self._account:
            os.chown(mark, *self._account)
        self._start()

    def promote(self) -> None:
        """Be a standby no more."""
        with self._connect() as connection:
            connection.execute("SELECT pg_promote()")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to go
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._n_databases += 1
        name = f"tandem{self._n_databases}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tandem:{self._password}@127.0.0.1:{self._port}/{name}"

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self._port,
            user="tandem",
            password=self._password,
            dbname="postgres",
            autocommit=True,
        )

    def _wait_until_up(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError as error:
                if self._server.poll() is not None or time.monotonic() > deadline_s:
                    raise NoPostgresql(
                        f"postgres does not start: {(self._folder / 'log').read_text()[-300:]}"
                    ) from error
                time.sleep(0.05)

    def _as_account(self) -> dict[str, object]:
        """Return how to start a program of the server: never as root, which PostgreSQL refuses."""
        account = {"user": self._account[0], "group": self._account[1], "extra_groups": []} if self._account else {}
        return {"cwd": self._folder, "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, **account}


def find_programs() -> Path:
    """Return the folder of the server's programs: the newest of Debian's, else the one on PATH."""
    versions = [path for path in DEBIAN_PROGRAMS.glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    if found is None:
        raise NoPostgresql("no PostgreSQL server is installed here (apt-get install postgresql)")
    return Path(found).resolve().parent


def unprivileged_account() -> tuple[int, int] | None:
    """Return user and group to run the server as; none when this is not root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise NoPostgresql("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
