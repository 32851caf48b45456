"""Containers started from docker-compose.yml, as tests see them; `make image-test` starts them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.e2e.loop import Tandem

SCRIPTS = Path(__file__).parents[2] / "scripts"
WORKERS = """
import pathlib
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"worker\\0--no-embedder" in (folder / "cmdline").read_bytes():
        print(folder.name)
"""


@dataclass(frozen=True)
class Composition:
    """What a command like `docker compose --project-name x` started, in the environment that it was started with."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def run(self, *arguments: str, given: str = "", timeout_s: float = 180) -> str:
        """Return what the command prints."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-2000:]}"
        return done.stdout

    def script(self, name: str, *arguments: str) -> None:
        """Run one of the scripts for a composition."""
        environment = self.environment | {"COMPOSE": " ".join(self.command)}
        command = [str(SCRIPTS / name), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def python(self, service: str, script: str) -> str:
        """Run a script within a service."""
        return self.run("exec", "-T", service, "python", "-c", script)

    def sql(self, database: str, query: str, *, user: str = "postgres") -> str:
        command = ("psql", "--username", user, "--dbname", database, "--tuples-only", "--no-align", "--command", query)
        return self.run("exec", "-T", "database", *command).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        container = self.run("ps", "--all", "--quiet", service).split()[0]
        return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]

    def url(self, service: str, port: int) -> str:
        return "http://" + self.run("port", service, str(port)).strip()

    def secret(self, name: str) -> str:
        return self.run("run", "--rm", "-T", "bootstrap", "show", name).strip()

    def has(self, service: str) -> bool:
        return bool(self.run("ps", "--quiet", service).strip())


@dataclass(frozen=True)
class ComposedLabelStudio:
    """Label Studio in its container."""

    composition: Composition

    @cached_property
    def url(self) -> str:
        return self.composition.url("label-studio", 8080)

    @cached_property
    def token(self) -> str:
        return self.composition.secret("label_studio_token")


@dataclass
class ComposedTandem(Tandem):
    """Tandem in its containers."""

    composition: Composition

    def workers(self) -> list[int]:
        return [int(line) for line in self.composition.python("worker", WORKERS).split()]

    def kill(self, process_id: int) -> None:
        self.composition.python("worker", f"import os; os.kill({process_id}, 9)")

    def logs(self) -> str:
        return self.composition.run("logs", "--no-color", "tandem", "worker")
