"""Tandem as a model for Label Studio's own server, hosted by stand-ins with the base classes of both generations.

The real server of 1.0.9 is in ``tests/integration/test_ml_server.py``; 2.x is on no package index.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.bootstrap import Container
from backend.domain import JobKind
from backend.errors import InvalidRequest
from backend.settings import Settings
from tests.factories import make_task
from tests.world import PROJECT, World, pets

RECORDINGS = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parents[2] / "contract" / "recordings").glob("*.json")
}
REQUESTS = {name: each["request"] for name, each in RECORDINGS.items() if "request" in each}
CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)


def recorded(path: str) -> list[str]:
    return sorted(name for name, each in REQUESTS.items() if each["path"] == path)


def body_of(name: str) -> Any:
    return copy.deepcopy(REQUESTS[name]["json"])


class FirstGeneration:
    """The base class of label-studio-ml 1.0.9, and what its server does with it."""

    def __init__(self, label_config: str | None = None, train_output: object = None, **_: object) -> None:
        self.label_config = label_config
        self.train_output = train_output

    @classmethod
    def answer_setup(cls, body: dict[str, Any]) -> Any:
        return "INITIAL", cls(label_config=body["schema"], hostname=body["hostname"], access_token="somebody's")

    @classmethod
    def answer_predict(cls, body: dict[str, Any]) -> Any:
        return cls(label_config=body["label_config"]).predict(body["tasks"], **body["params"])  # type: ignore[attr-defined]

    @classmethod
    def take_event(cls, body: dict[str, Any], workdir: Path) -> Any:
        event = body.pop("action")
        workdir.mkdir()
        (workdir / "event.json").write_text(json.dumps(body))
        model = cls(label_config=body.get("project", {}).get("label_config"), train_output=None)
        return model.process_event(event, body, "1795460722", {"workdir": str(workdir)})  # type: ignore[attr-defined]


class SecondGeneration:
    """The base class of label-studio-ml 2.x, and what its server does with it."""

    remembered: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()  # type: ignore[attr-defined]

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")

    def get(self, key: str) -> str | None:
        return self.remembered.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        self.remembered[self.project_id, key] = value

    def set_extra_params(self, extra_params: object) -> None:
        if not isinstance(extra_params, str):
            raise ValueError("Value must be a string")

    @classmethod
    def answer_setup(cls, body: dict[str, Any]) -> Any:
        model = cls(project_id=body["project"].split(".", 1)[0], label_config=body["schema"])
        if body["extra_params"]:
            model.set_extra_params(body["extra_params"])
        return model.get("model_version"), model

    @classmethod
    def answer_predict(cls, body: dict[str, Any]) -> Any:
        params = dict(body["params"])
        context = params.pop("context", {})
        model = cls(project_id=str(body["project"]).split(".", 1)[0], label_config=body["label_config"])
        return model.predict(body["tasks"], context=context, **params)  # type: ignore[attr-defined]

    @classmethod
    def take_event(cls, body: dict[str, Any], workdir: Path) -> Any:  # noqa: ARG003
        event = body.pop("action")
        project = body["project"]
        return cls(str(project["id"]), label_config=project["label_config"]).fit(event, body)  # type: ignore[attr-defined]


@pytest.fixture(params=[FirstGeneration, SecondGeneration], ids=["1.0.9", "2.x"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Tandem's module on a stand-in for the server's package."""
    package, module = ModuleType("label_studio_ml"), ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = request.param  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", package)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    monkeypatch.setattr(SecondGeneration, "remembered", {})
    sys.modules.pop("backend.label_studio.ml_base", None)
    yield importlib.import_module("backend.label_studio.ml_base")
    del sys.modules["backend.label_studio.ml_base"]


def make_container(world: World) -> Container:
    container = Container(Settings(model_dir=world.folder))  # type: ignore[call-arg]
    container.__dict__ |= {"database": world.database, "embedder": world.embedder, "images": world.images}
    return container


@pytest.fixture
def tandem(server: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that the server is given; its services work on the first world."""
    container = make_container(world)
    monkeypatch.setattr(server, "container", lambda: container)
    return server.Tandem


def own_web(world: World, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """Tandem's own web application on a world."""
    monkeypatch.setattr("backend.app.configure_logs", lambda *_, **__: None)
    monkeypatch.setattr("backend.app.Container", lambda _settings, **_: make_container(world))
    return create_app(Settings(model_dir=world.folder)).test_client()  # type: ignore[call-arg]


def predict_body(*task_ids: int) -> dict[str, Any]:
    tasks = [
        {"id": number, "project": PROJECT, "data": {"image": make_task(number, pets(12)[number]).image_url}}
        for number in task_ids
    ]
    return {"project": "5.1700000000", "label_config": CONFIG, "tasks": tasks, "params": {"context": None}}


def test_suggestions_are_those_of_tandems_own_server(
    tandem: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = world.learn(pets(12))
    results = tandem.answer_predict(predict_body(1, 2, 3))
    assert [entry["model_version"] for entry in results] == [version.name] * 3
    assert results == own_web(world, monkeypatch).post("/predict", json=predict_body(1, 2, 3)).get_json()["results"]


def test_requests_for_suggestions_as_recorded(tandem: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_web(world, monkeypatch)
    for name in recorded("/predict"):
        results = tandem.answer_predict(body_of(name))
        assert results == [{} for _ in body_of(name)["tasks"]], name
        assert results == own.post("/predict", json=body_of(name)).get_json()["results"], name


def test_no_tasks_are_no_suggestions(tandem: Any) -> None:
    assert tandem.answer_predict(predict_body()) == []


def test_a_project_that_nobody_names(tandem: Any) -> None:
    with pytest.raises(InvalidRequest, match="which project"):
        tandem().predict([{"id": 1, "data": {}}])


def test_setup_as_recorded(tandem: Any, second_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_web(second_world, monkeypatch)
    for name in recorded("/setup"):
        version, model = tandem.answer_setup(body_of(name))
        # 1.0.9 says this whatever the model knows
        expected = "INITIAL" if issubclass(tandem, FirstGeneration) else None
        assert version == (expected or own.post("/setup", json=body_of(name)).get_json()["model_version"]), name
        assert model.label_config == body_of(name)["schema"], name


def rows(world: World) -> Any:
    with world.database.snapshot() as stores:
        projects = stores.projects.all()
        return [
            (
                project.identity,
                project.title,
                project.label_config,
                stores.tasks.all(project.id),
                stores.annotations.all(project.id),
                {kind for kind in JobKind if stores.jobs.queued(project.id, kind)},
            )
            for project in projects
        ]


def test_events_as_recorded(
    tandem: Any, world: World, second_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_web(second_world, monkeypatch)
    workdir = tmp_path / "1795460722"
    names = [name for name in recorded("/webhook") if "project" in body_of(name)]
    for name in names:
        tandem.take_event(body_of(name), workdir)
        assert own.post("/webhook", json=body_of(name)).status_code == 200
        assert rows(world) == rows(second_world), name
        assert not workdir.exists(), name
    assert len(rows(world)) > 10


def test_an_event_without_content(tandem: Any) -> None:
    with pytest.raises(InvalidRequest, match="no data"):
        tandem().fit((), event="START_TRAINING")


def test_services_come_from_the_settings_once(server: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", str(world.folder))
    assert server.container().settings.model_dir == world.folder
    assert server.container() is server.container()
