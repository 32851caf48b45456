"""Label Studio in an environment of its own, with locked requirements: installed and migrated once per cache folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.background_process import ServerFailed

VERSION = "1.23.2"
REQUIREMENTS = Path(__file__).with_name("label_studio_requirements.txt")
INSTALL_TIMEOUT_S = 1200.0
MIGRATION_TIMEOUT_S = 600.0

# What the caller's environment may say about another server must not change this one.
FOREIGN_PREFIXES = (
    "LABEL_STUDIO_",
    "HEARTEX_",
    "ML_",
    "WEBHOOK_",
    "SSRF_",
    "DJANGO_",
    "POSTGRE_",
    "REDIS_",
    "LOCAL_FILES_",
)
FOREIGN_NAMES = {"HOST", "PORT", "USERNAME", "PASSWORD", "USER_TOKEN", "DEBUG", "DATABASE_NAME", "DATABASE_URL"}

Report = Callable[[str], None]


def be_silent(text: str) -> None:
    """Report nothing."""
    del text


def install(cache_dir: Path, report: Report = be_silent) -> Path:
    """Install Label Studio with locked requirements, unless done already; return its program.

    Raises:
        ServerFailed: with what the installer said.
    """
    folder = cache_dir / f"label-studio-{VERSION}"
    program = folder / "bin" / "label-studio"
    complete = folder / "complete"
    with _locked(cache_dir / "install.lock"):
        if program.exists() and complete.exists() and complete.read_bytes() == REQUIREMENTS.read_bytes():
            return program
        _fill(folder, report)
        complete.write_bytes(REQUIREMENTS.read_bytes())
    return program


def _fill(folder: Path, report: Report) -> None:
    requirements = ["--quiet", "--requirement", str(REQUIREMENTS)]
    python = str(folder / "bin" / "python")
    uv = _find_uv()
    # pip comes second, slower, for where only its configuration names a package index that can be reached.
    ways = [
        ([sys.executable, "-m", "venv", str(folder)], [python, "-m", "pip", "install", *requirements]),
    ]
    if uv:
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        ways.insert(0, (make, [uv, "pip", "install", "--python", python, *requirements]))
    problems = []
    for make, fill in ways:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for command in (make, fill):
                _run(command, base_environment(), "Label Studio is installed", INSTALL_TIMEOUT_S, report)
        except ServerFailed as error:
            problems.append(str(error))
        else:
            return
    raise ServerFailed("Label Studio cannot be installed:\n" + "\n".join(problems))


def migrated_database(program: Path, cache_dir: Path, report: Report = be_silent) -> Path:
    """Return a database with all migrations applied, made once: they are most of a first start.

    Raises:
        ServerFailed: with what Label Studio said.
    """
    folder = cache_dir / f"label-studio-{VERSION}-database"
    database = folder / "label_studio.sqlite3"
    with _locked(cache_dir / "database.lock"):
        if database.exists() and (folder / "complete").exists():
            return database
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # "version" migrates and ends; "--version" would go on to start a server.
        environment = base_environment() | {"LABEL_STUDIO_BASE_DATA_DIR": str(folder)}
        _run([str(program), "version"], environment, "the database is made", MIGRATION_TIMEOUT_S, report)
        (folder / "complete").touch()
    return database


def base_environment() -> dict[str, str]:
    """Return what any Label Studio of ours gets: no settings of the caller's, and nothing goes out."""
    inherited = os.environ  # noqa: TID251 - handed on to a child, no setting of ours is read
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(FOREIGN_PREFIXES) and name not in FOREIGN_NAMES
    }
    return kept | {
        "DJANGO_DB": "sqlite",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "FEATURE_FLAGS_OFFLINE": "true",
        "LABEL_STUDIO_LOG_LEVEL": "WARNING",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _find_uv() -> str | None:
    beside_the_project = Path(__file__).parents[1] / ".tools" / "bin" / "uv"
    return str(beside_the_project) if beside_the_project.is_file() else shutil.which("uv")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], environment: dict[str, str], doing: str, timeout_s: float, report: Report) -> None:
    started_s = time.monotonic()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        output = ""
        while child.returncode is None:
            elapsed_s = time.monotonic() - started_s
            report(f"{doing} ({elapsed_s:.0f} s)")
            if elapsed_s > timeout_s:
                child.kill()
            try:
                output, _ = child.communicate(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
    if child.returncode != 0:
        raise ServerFailed(f"`{' '.join(command[:3])} …` ended with {child.returncode}:\n{output[-3000:]}")
