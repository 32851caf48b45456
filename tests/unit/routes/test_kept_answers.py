"""The same request has the same answer, without any work, until something changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from backend.adapters.database import SqlDatabase
from backend.routes.kept_answers import KeptAnswers
from backend.routes.protocol import protocol_blueprint
from backend.services.prediction import Answer
from tests.factories import image_url
from tests.world import PROJECT, World, pets

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)


class Web:
    """The protocol's routes in front of a world; ``n_worked_out`` counts the answers that took some work."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.n_worked_out = 0
        container = SimpleNamespace(database=world.database, clock=world.clock, prediction=self)
        app = Flask("web")
        app.register_blueprint(protocol_blueprint(container))  # type: ignore[arg-type]
        self.client: FlaskClient = app.test_client()

    def predict(self, *asked: Any) -> Answer:
        self.n_worked_out += 1
        return self.world.prediction.predict(*asked)

    def ask(self, task_id: int) -> dict[str, Any]:
        task = {"id": task_id, "data": {"image": image_url("cat", task_id)}}
        answer = self.client.post("/predict", json={"project": "5.1700000000", "label_config": CONFIG, "tasks": [task]})
        assert answer.status_code == 200
        assert answer.content_type == "application/json"
        (entry,) = answer.get_json()["results"]
        return dict(entry)


@pytest.fixture
def web(world: World) -> Web:
    world.learn(pets(12))
    return Web(world)


def test_the_same_request_is_worked_out_once(web: Web) -> None:
    first = web.ask(2)  # writes down that somebody asks
    assert first["result"][0]["value"] == {"choices": ["cat"]}
    assert [web.ask(2) for _ in range(5)] == [first] * 5
    assert web.n_worked_out == 2
    assert web.ask(4)["result"][0]["id"] != first["result"][0]["id"]
    assert web.n_worked_out == 3


def test_any_change_of_the_state_has_it_worked_out_again(web: Web) -> None:
    first = web.world.active
    web.world.learn(pets(8, start=13))
    elsewhere = SqlDatabase(f"sqlite:///{web.world.folder / 'tandem.sqlite3'}")
    for version in (web.world.active, first, web.world.active):
        with elsewhere.transaction() as stores:
            stores.versions.activate(PROJECT, version.name, "tested")
        assert [web.ask(2)["model_version"] for _ in range(3)] == [version.name] * 3
    elsewhere.close()


def test_every_minute_it_is_worked_out_again(web: Web) -> None:
    for minute in range(3):
        for _ in range(4):
            web.ask(2)
        assert web.n_worked_out == 2 * (minute + 1)
        web.world.clock.forward(60)


def test_an_empty_entry_is_worked_out_every_time(web: Web) -> None:
    web.world.embedder.down = True
    assert [web.ask(30) for _ in range(3)] == [{}] * 3
    assert web.n_worked_out == 3
    web.world.embedder.down = False
    assert web.ask(30)["result"]


def test_many_answers_push_the_older_ones_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.routes.kept_answers.MAX_KEPT_BYTES", 100)
    kept = KeptAnswers(world.database, world.clock)
    moment = kept.now()
    for number in range(10):
        kept.keep(moment, f"request {number}".encode(), b"a" * 40)
    found = [number for number in range(10) if kept.find(moment, f"request {number}".encode())]
    assert found == [8, 9]
    kept.keep(moment, b"huge", b"a" * 100)
    assert kept.find(moment, b"huge") is None
    assert kept.find(moment, b"request 9") == b"a" * 40


def test_an_answer_of_a_moment_that_has_passed_is_never_given(world: World) -> None:
    kept = KeptAnswers(world.database, world.clock)
    before = kept.now()
    world.see_tasks(pets(1))
    after = kept.now()
    assert before != after
    kept.keep(after, b"request", b"new")
    kept.keep(before, b"request", b"late")
    assert kept.find(after, b"request") is None
