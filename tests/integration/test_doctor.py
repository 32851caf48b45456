"""The doctor between a real Label Studio and a real web server of Tandem."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import structlog
from typer.testing import CliRunner

from backend.background_process import free_port
from backend.bootstrap import Container
from backend.cli import app
from backend.commands.servers import web_arguments
from backend.domain import Project
from backend.label_studio.inspection import Inspection
from backend.local_label_studio import LocalLabelStudio
from backend.ports import UrlVerdict
from backend.settings import Settings, load_settings
from tests.fakes import Reports

pytestmark = [pytest.mark.label_studio, pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = (
    '<View><Image name="img" value="$image"/><Choices name="c" toName="img"><Choice value="cat"/>'
    '<Choice value="dog"/></Choices></View>'
)
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)
WEBHOOK_SECRET = "a-secret-that-nobody-may-see"
BASIC_AUTH_PASS = "a-password-that-nobody-may-see"


@dataclass(frozen=True, kw_only=True)
class Clinic:
    """A Label Studio, and the settings of a Tandem that the doctor is to look at."""

    label_studio: LocalLabelStudio
    url: str
    monkeypatch: pytest.MonkeyPatch

    def set(self, **settings: str) -> None:
        for name, value in settings.items():
            self.monkeypatch.setenv(name.upper(), value)

    def call(self, method: str, path: str, body: object) -> requests.Response:
        key = self.label_studio.personal_access_token()
        with requests.Session() as session:
            session.trust_env = False
            access = session.post(f"{self.label_studio.url}/api/token/refresh", json={"refresh": key}, timeout=60)
            headers = {"Authorization": f"Bearer {access.json()['access']}"}
            return session.request(method, self.label_studio.url + path, json=body, headers=headers, timeout=60)

    def create_project(self) -> int:
        project: int = self.call("POST", "/api/projects/", {"title": "test", "label_config": CONFIG}).json()["id"]
        assert self.call("POST", f"/api/projects/{project}/import", [{"image": DOT}]).ok
        return project

    def connect(self, project: int) -> requests.Response:
        return self.call("POST", "/api/ml", {"project": project, "url": self.url, "title": "Tandem"})

    def reconcile(self, label_studio_project: int) -> Project:
        """What the worker would do."""
        container = Container(load_settings())
        assert container.gateway
        with container.database.transaction() as stores:
            project = stores.projects.resolve(container.gateway.project(label_studio_project).identity)
        container.reconciliation.run(project.id, Reports())
        container.database.close()
        return project

    def examine(self, *options: str) -> tuple[int, dict[str, Any]]:
        """Run the doctor; return its exit status and what is not ok, by check."""
        result = CliRunner().invoke(app, ["doctor", "--json", *options], catch_exceptions=False)
        secrets = (
            *(self.label_studio.token, self.label_studio.personal_access_token(), self.label_studio.password),
            *(WEBHOOK_SECRET, BASIC_AUTH_PASS),
        )
        assert not [secret for secret in secrets if secret in result.output]
        told = json.loads(result.stdout)
        assert told["ok"] == (result.exit_code == 0)
        return result.exit_code, {check["check"]: check for check in told["checks"] if check["status"] != "ok"}


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("backend.commands.context.configure_logs", lambda *_, **__: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


def make_clinic(label_studio: LocalLabelStudio, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    port = free_port()
    clinic = Clinic(label_studio=label_studio, url=f"http://127.0.0.1:{port}", monkeypatch=monkeypatch)
    clinic.set(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.personal_access_token(),
        public_url=clinic.url,
        host="127.0.0.1",
        port=str(port),
        model_dir=str(model_dir),
        weights="none",
        webhook_secret=WEBHOOK_SECRET,
    )
    return clinic


@pytest.fixture
def clinic(label_studio: LocalLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    return make_clinic(label_studio, tmp_path, monkeypatch)


@pytest.fixture
def web(clinic: Clinic) -> Iterator[subprocess.Popen[bytes]]:
    environment = dict(os.environ)  # noqa: TID251 - handed on to a child
    with subprocess.Popen(web_arguments(load_settings()), env=environment) as process:
        deadline_s = time.monotonic() + 60
        while not is_up(clinic.url):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield process
        process.send_signal(signal.SIGTERM)


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False


def test_from_a_webhook_without_our_secret_to_an_event_that_comes_through(
    clinic: Clinic, web: subprocess.Popen[bytes]
) -> None:
    project = clinic.create_project()
    assert clinic.connect(project).ok
    status, ailments = clinic.examine()
    assert status == 1
    assert {name for name, each in ailments.items() if each["status"] == "failed"} == {"webhook", "events"}
    assert "does not carry our secret" in ailments["webhook"]["found"]
    assert "none ever came" in ailments["events"]["found"]
    assert ailments["images"]["status"] == "skipped"

    clinic.reconcile(project)
    _, ailments = clinic.examine("--read-only")
    assert ailments["events"]["status"] == "warning"
    status, ailments = clinic.examine()
    assert (status, set(ailments)) == (0, {"embedder", "weights", "model version", "sampling"})

    for key, words in ((clinic.label_studio.token, "legacy token"), ("0" * 40, "does not know")):
        clinic.set(label_studio_api_key=key)
        _, ailments = clinic.examine()
        said = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "300"}).output
        assert words in said
        assert key not in said
        assert ("api key" in ailments) == (key == "0" * 40)

    clinic.set(label_studio_api_key=clinic.label_studio.personal_access_token())
    web.send_signal(signal.SIGTERM)
    web.wait(60)
    status, ailments = clinic.examine()
    assert status == 1
    assert ailments["connection"]["status"] == "failed"
    assert {ailments[name]["status"] for name in ("web server", "public url")} == {"warning"}


@pytest.fixture(scope="module")
def strict_label_studio(
    tmp_path_factory: pytest.TempPathFactory, label_studio: LocalLabelStudio
) -> Iterator[LocalLabelStudio]:
    """As Label Studio is without any settings: no legacy tokens, no private addresses."""
    data_dir = tmp_path_factory.mktemp("strict-label-studio")
    with LocalLabelStudio(
        data_dir, cache_dir=label_studio.cache_dir, legacy_tokens=False, private_addresses=False
    ) as server:
        yield server


def test_a_label_studio_that_refuses_private_addresses_and_legacy_tokens(
    strict_label_studio: LocalLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = make_clinic(strict_label_studio, tmp_path, monkeypatch)
    project = clinic.create_project()
    assert clinic.connect(project).status_code == 403
    clinic.reconcile(project)
    status, ailments = clinic.examine()
    assert status == 1
    for check in ("backend address", "webhook address"):
        assert "private or local address" in ailments[check]["found"]
        assert "SSRF_PROTECTION_ENABLED=false" in ailments[check]["remedy"]
    assert ailments["connection"]["status"] == ailments["webhook"]["status"] == "failed"

    clinic.set(public_url="http://tandem:9090")
    _, ailments = clinic.examine("--read-only")
    assert "has no dot" in ailments["public url"]["found"]
    assert "does not take it for a URL" in ailments["webhook address"]["found"]

    clinic.set(label_studio_api_key=strict_label_studio.token)
    _, ailments = clinic.examine("--read-only")
    assert "legacy tokens are switched off" in ailments["api key"]["found"]
    assert "personal access token" in ailments["api key"]["remedy"]


def test_asking_about_urls_makes_nothing(clinic: Clinic) -> None:
    project = clinic.create_project()
    settings: Settings = load_settings()
    assert settings.label_studio_api_key
    inspection = Inspection(clinic.label_studio.url, settings.label_studio_api_key.get_secret_value())
    url = "http://127.0.0.1:9"
    assert inspection.judge_backend_url(project, url) is UrlVerdict.ACCEPTED
    assert inspection.judge_webhook_url(project, f"{url}/webhook") is UrlVerdict.ACCEPTED
    assert inspection.judge_webhook_url(project, "http://tandem/webhook") is UrlVerdict.MALFORMED
    assert inspection.judge_backend_url(project, "http://nobody.invalid") is UrlVerdict.UNRESOLVED
    assert inspection.backends(project) == []
    assert clinic.call("GET", f"/api/webhooks/?project={project}", None).json() == []
    inspection.close()
