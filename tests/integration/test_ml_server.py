"""Label Studio's own server for backends, label-studio-ml 1.0.9, hosts Tandem: its real process, the real protocol."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.adapters.database import SqlDatabase
from backend.app import create_app
from backend.background_process import free_port
from backend.domain import JobKind
from backend.settings import Settings
from tests.factories import make_task
from tests.world import PROJECT, World, pets

pytestmark = pytest.mark.slow

RECORDINGS = Path(__file__).parents[1] / "contract" / "recordings"
CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
TIMEOUT_S = 120.0


def body_of(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())["request"]["json"]


def predict_body() -> dict[str, Any]:
    tasks = [
        {"id": number, "project": PROJECT, "data": {"image": make_task(number, name).image_url}}
        for number, name in pets(12).items()
    ]
    return {"project": "5.1700000000", "label_config": CONFIG, "tasks": tasks, "params": {"context": None}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("model")
    database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
    database.migrate()
    world = World(folder, database)
    world.learn(pets(12))
    yield world
    database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    port: int
    process: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the server ended"
        try:
            return self.ask("GET", "/health")[1]["status"] == "UP"
        except OSError:
            return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What ``label-studio-ml init`` makes of the two lines that a user writes."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "tandem_model.py").write_text("from backend.label_studio.ml_base import Tandem\n\n__all__ = ['Tandem']\n")
    program = Path(sys.executable).with_name("label-studio-ml")
    environment = {name: value for name, value in os.environ.items() if name not in ("BASIC_AUTH_USER", "USE_REDIS")}  # noqa: TID251
    environment |= {"MODEL_DIR": str(world.folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    initialized = subprocess.run(
        [program, "init", "hosted", "--script", "tandem_model.py:Tandem"], cwd=folder, capture_output=True, check=False
    )
    assert initialized.returncode == 0, initialized.stderr
    port = free_port()
    command = [sys.executable, "hosted/_wsgi.py", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        server = Server(port=port, process=process)
        wait_for(server.is_up)
        yield server
        process.terminate()


def test_suggestions_are_those_of_tandems_own_server(
    server: Server, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = {"project": "5.1700000000", "schema": CONFIG, "hostname": "http://label-studio", "access_token": "token"}
    # 1.0.9 keeps no model before the first setup, and knows no version but those it trained itself.
    assert server.ask("POST", "/predict", predict_body())[0] == 500
    assert server.ask("POST", "/setup", setup) == (200, {"model_version": "INITIAL"})
    monkeypatch.setattr("backend.app.configure_logs", lambda *_, **__: None)
    own = create_app(Settings(model_dir=world.folder)).test_client()  # type: ignore[call-arg]
    status, answer = server.ask("POST", "/predict", predict_body())
    assert status == 200
    assert {entry["model_version"] for entry in answer["results"]} == {world.active.name}
    assert answer["results"] == own.post("/predict", json=predict_body()).get_json()["results"]
    for name in ("predict_next_task", "predict_interactive_context", "predict_batch_retrieve"):
        asked = body_of(name)
        server.ask("POST", "/setup", setup | {"project": asked["project"], "schema": asked["label_config"]})
        status, answer = server.ask("POST", "/predict", asked)
        assert status == 200
        assert answer["results"] == own.post("/predict", json=asked).get_json()["results"]
        assert len(answer["results"]) == len(asked["tasks"])


def test_events_are_stored(server: Server, world: World) -> None:
    """Each in a process that the server starts for it, which takes as long as it takes to import torch."""
    labelled, pressed = body_of("ui_webhook_ANNOTATION_CREATED_single_radio"), body_of("ui_webhook_START_TRAINING")
    for body in (labelled, pressed):
        assert server.ask("POST", "/webhook", body)[0] == 201
        time.sleep(1.1)  # its job ids are seconds

    def are_stored() -> bool:
        with world.database.snapshot() as stores:
            ids = {project.identity.label_studio_id: project.id for project in stores.projects.all()}
            first, second = (ids.get(body["project"]["id"]) for body in (labelled, pressed))
            return bool(first and second) and (
                labelled["annotation"]["id"] in {each.id for each in stores.annotations.all(first)}
                and stores.jobs.queued(second, JobKind.HEAD) is not None
            )

    wait_for(are_stored)
    # Nothing of the events, the projects' tokens least of all, stays in files of the server's.
    wait_for(lambda: not [each for each in world.folder.iterdir() if each.name.isdigit()])
    assert server.ask("POST", "/setup", {"project": "5.1", "schema": CONFIG}) == (200, {"model_version": "INITIAL"})
