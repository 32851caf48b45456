"""What one must know beside the figures of a benchmark: when, how, and on what they were measured."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def described(*packages: str, **machine: object) -> dict[str, Any]:
    """Return date, command, commit, machine and versions.

    Args:
        packages: those whose versions matter; ``None`` where one is not installed.
        machine: what else there is to say of the machine, by name.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "processors": os.cpu_count(),
            "machine": platform.machine(),
            "load": round(os.getloadavg()[0], 1),
            **machine,
        },
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in packages},
    }


def command() -> str:
    """Return the command line of this process; of paths the last part only, because others are nobody's business."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", specification.name] if specification else [f"benchmarks/{Path(sys.argv[0]).name}"]
    return shlex.join(["python", *program, *map(without_folders, sys.argv[1:])])


def without_folders(argument: str) -> str:
    """Return an argument, ``--option=value`` too, without the folders where it is a path."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if os.sep in value else value)


def commit() -> str | None:
    """Return the commit of the code, marked where files differ from it; ``None`` where git does not know."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        answer = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


def processor() -> str:
    """Return the name of the processor's model, as far as the system tells it."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
