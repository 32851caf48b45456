"""Two real web processes, forked from one that has the application loaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from backend.background_process import free_port
from backend.commands.servers import web_arguments
from backend.settings import Settings
from tests.factories import make_task
from tests.world import PROJECT, World, pets

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    port: int
    master: int

    @property
    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.master}/task/{self.master}/children")
        return [int(number) for number in path.read_text().split()]

    def ask(self, method: str, path: str, body: object = None) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        assert answer.status == 200, content
        return content

    def predict(self, task_id: int) -> dict[str, object]:
        task = {"id": task_id, "data": {"image": make_task(task_id, pets(12)[task_id]).image_url}}
        body = {"project": "5.1700000000", "label_config": CONFIG, "tasks": [task]}
        (entry,) = self.ask("POST", "/predict", body)["results"]  # type: ignore[misc]
        return entry  # type: ignore[no-any-return]


def open_files(pid: int) -> list[str]:
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(str(file.readlink()))
    return found


def has_database_open(pid: int) -> bool:
    return any("tandem.sqlite3" in file for file in open_files(pid))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def learned(tmp_path: Path) -> Iterator[World]:
    database = SqlDatabase(f"sqlite:///{tmp_path / 'tandem.sqlite3'}")
    database.migrate()
    world = World(tmp_path, database)
    world.learn(pets(12))
    yield world
    database.close()


@pytest.fixture
def server(learned: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    settings = Settings(model_dir=learned.folder, host="127.0.0.1", port=free_port(), workers=2)  # type: ignore[call-arg]
    monkeypatch.setenv("MODEL_DIR", str(learned.folder))
    with subprocess.Popen(web_arguments(settings)) as process:
        server = WebServer(port=settings.port, master=process.pid)

        def is_up() -> bool:
            assert process.poll() is None
            try:
                return server.ask("GET", "/health")["status"] == "UP"
            except OSError:
                return False

        wait_for(is_up)
        wait_for(lambda: len(server.workers) == 2)
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_workers_share_the_application_but_nothing_that_is_open(server: WebServer, learned: World) -> None:
    """Whichever answers: the answers are right, and a rollback shows in all of them at once."""
    assert not has_database_open(server.master)
    assert not any(map(has_database_open, server.workers))
    first = learned.active

    def both_have_answered() -> bool:
        for task_id, name in pets(12).items():
            entry = server.predict(task_id)
            assert entry["model_version"] == first.name
            assert entry["result"][0]["value"] == {"choices": [name]}  # type: ignore[index]
        return all(map(has_database_open, server.workers))

    wait_for(both_have_answered)
    assert not has_database_open(server.master)
    assert len([file for file in open_files(server.master) if file.startswith("socket:")]) == 1

    learned.label({1: "cat"})
    learned.fit()
    for version in (learned.active, first, learned.active):
        with learned.database.transaction() as stores:
            stores.versions.activate(PROJECT, version.name, "tested")
        assert {server.predict(task_id)["model_version"] for task_id in [*pets(12)] * 3} == {version.name}
