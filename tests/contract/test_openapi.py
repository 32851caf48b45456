"""Every endpoint, asked all that its published description allows and much that it does not."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, assume, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.adapters.database import SqlDatabase
from backend.app import create_app
from backend.bootstrap import Container
from backend.routes.openapi import DOCUMENT, openapi_blueprint
from backend.settings import Settings
from tests.fakes import FakeEmbedder, FakeImages
from tests.world import PROJECT, World, pets

CHECKS = (status_code_conformance, content_type_conformance, response_schema_conformance)
LOGGED = ("Traceback", 'File "')


class Application:
    """What is asked: at first, while tests are collected, no more than the document."""

    def __init__(self) -> None:
        self.flask = Flask("published", root_path=str(DOCUMENT.parent))
        self.flask.register_blueprint(openapi_blueprint())

    def __call__(self, *arguments: Any) -> Any:
        return self.flask(*arguments)


application = Application()
schema = schemathesis.openapi.from_wsgi(
    "/openapi.json",
    application,
    config=schemathesis.Config.from_dict({"generation": {"deterministic": True, "database": "none"}}),
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """The web application over a project that has learned something, and one that has not."""
    folder = tmp_path_factory.mktemp("tandem")
    database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
    database.migrate()
    world = World(folder, database)
    world.learn(pets(16))
    world.see_tasks(pets(8, start=30))
    world.embed()
    database.close()

    def make_container(*arguments: Any, **options: Any) -> Container:
        container = Container(*arguments, **options)
        container.__dict__ |= {"images": FakeImages(folder / "images"), "embedder": FakeEmbedder()}
        return container

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.app.Container", make_container)
        patch.setattr("backend.app.configure_logs", lambda *_, **__: None)
        application.flask = create_app(Settings(model_dir=folder, rate_limit_per_minute=10**9))
    return application.flask


@pytest.fixture(autouse=True)
def _any_number_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.routes.access.CHANGES", 10**9)


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_published_whatever_is_asked(app: Flask, case: Case) -> None:  # noqa: ARG001 - it is asked
    # what the others ask for stays
    assume((case.method, (case.path_parameters or {}).get("project_id")) != ("DELETE", PROJECT))
    answer = case.call()
    # without an embedder Tandem is not ready, and says so by a status of the server's errors
    case.validate_response(answer, checks=CHECKS if case.path == "/ready" else (not_a_server_error, *CHECKS))
    assert not any(sign in answer.text for sign in LOGGED)


@pytest.mark.parametrize("suffix", ["", "/reliability.svg"])
def test_what_is_known_of_a_version_is_as_published(app: Flask, suffix: str) -> None:
    (version,) = app.test_client().get(f"/api/projects/{PROJECT}/versions").get_json()
    operation = schema["/api/projects/{project_id}/versions/{version}" + suffix]["GET"]
    case = operation.Case(path_parameters={"project_id": PROJECT, "version": version["version"]})
    answer = case.call()
    assert answer.status_code == 200
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize("number", [0, 2**31, 2**63 - 1, 2**63, 10**40])
def test_a_number_that_no_project_or_job_can_have_is_not_found(app: Flask, number: int) -> None:
    client = app.test_client()
    assert client.get(f"/api/projects/{number}").status_code == 404
    assert client.delete(f"/api/jobs/{number}").status_code == 404
