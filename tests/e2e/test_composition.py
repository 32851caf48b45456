"""What docker-compose.yml promises beside the loop, on the containers that `make image-test` starts."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.composition import ComposedLabelStudio, Composition
from tests.e2e.loop import Annotator, Tandem, is_healthy, wait_for

pytestmark = pytest.mark.timeout(600)

STATUS = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
try:
    open("/opt/written", "w")
    written = True
except OSError:
    written = False
print(status["Uid"].split()[0], int(status["CapEff"], 16), status["NoNewPrivs"].strip(), written)
"""
STOP_LIMIT_S = 40


@pytest.fixture(scope="module")
def containers(composition: Composition | None) -> Composition:
    if composition is None:
        pytest.skip("no running composition was named: make image-test starts one")
    return composition


@pytest.fixture(scope="module")
def annotator(containers: Composition, tandem: Tandem) -> Annotator:
    label_studio = ComposedLabelStudio(containers)
    user = Annotator(url=label_studio.url, token=label_studio.token)
    user.make_project()
    user.upload(0, 18)
    user.call("POST", "/api/ml", json={"project": user.project_id, "url": tandem.public_url, "title": "Tandem"})
    for task in user.unlabelled()[:6]:
        user.label(task)
    wait_for(lambda: learned(tandem, user, 6), "a version that knows six labels")
    return user


@pytest.mark.parametrize("service", ["database", "label-studio", "tandem", "worker"])
def test_everything_is_healthy(containers: Composition, service: str) -> None:
    wait_for(lambda: containers.inspect(service)["State"]["Health"]["Status"] == "healthy", f"{service} is healthy")


@pytest.mark.parametrize("service", ["tandem", "worker"])
def test_tandem_has_no_privileges_and_writes_nowhere_else(containers: Composition, service: str) -> None:
    assert containers.python(service, STATUS).split() == ["10001", "0", "1", "False"]


@pytest.mark.parametrize("service", ["database", "label-studio", "tandem", "worker"])
def test_memory_and_logs_are_limited(containers: Composition, service: str) -> None:
    host = containers.inspect(service)["HostConfig"]

    assert host["Memory"] > 0
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}


def test_each_service_sees_its_own_secrets_only(containers: Composition) -> None:
    seen = {
        service: set(containers.run("exec", "-T", service, "ls", "/run/secrets").split())
        for service in ("database", "label-studio", "tandem", "worker")
    }

    assert seen["label-studio"] == {"label-studio.env"}
    assert (
        seen["tandem"]
        == seen["worker"]
        == {"aws_credentials", "database_url", "label_studio_api_key", "webhook_secret"}
    )
    assert seen["database"] == {"postgres_password", "label_studio_database_password", "tandem_database_password"}


def test_no_secret_is_in_the_environment_or_in_a_log(containers: Composition) -> None:
    names = ("label_studio_token", "label_studio_password", "label_studio_key", "webhook_secret", "storage_secret_key")
    databases = ("postgres_password", "label_studio_database_password", "tandem_database_password")
    secrets = [containers.secret(name) for name in names + databases]

    everything = containers.run("logs")
    everything += json.dumps(
        [containers.inspect(service) for service in ("database", "label-studio", "tandem", "worker")]
    )

    assert len(set(secrets)) == len(secrets)
    assert not [secret for secret in secrets if secret in everything]


def test_no_default_password_opens_anything(containers: Composition, annotator: Annotator) -> None:
    for user, database in (("postgres", "postgres"), ("label_studio", "label_studio"), ("tandem", "tandem")):
        for guess in ("", "postgres", user):
            ask = f"psql --host database --no-password --username {user} --dbname {database} --command 'SELECT 1'"
            refused = containers.run("exec", "-T", "database", "sh", "-c", f"PGPASSWORD='{guess}' {ask} 2>&1 || true")
            assert "password" in refused, f"{user} with password {guess!r}: {refused}"
    user = "admin@example.com"
    for guess in ("admin", "password", "labelstudio", user):
        assert not logs_in(annotator.url, user, guess)
    assert logs_in(annotator.url, user, containers.secret("label_studio_password"))


def test_people_log_in_through_a_proxy_with_tls(containers: Composition, annotator: Annotator) -> None:
    password = containers.secret("label_studio_password")
    ours = containers.environment["CSRF_TRUSTED_ORIGINS"]

    assert logs_in(annotator.url, "admin@example.com", password, origin=ours)
    assert not logs_in(annotator.url, "admin@example.com", password, origin="https://elsewhere.example.com")


def test_nobody_signs_up_without_an_invitation(annotator: Annotator) -> None:
    page = requests.Session()
    page.get(f"{annotator.url}/user/signup/", timeout=60)
    form = {
        "email": "stranger@example.com",
        "password": "a long password",
        "csrfmiddlewaretoken": page.cookies["csrftoken"],
    }

    assert page.post(f"{annotator.url}/user/signup/", data=form, timeout=60).status_code == 403


def test_what_is_kept_is_in_named_volumes(containers: Composition) -> None:
    for service in ("database", "label-studio", "tandem", "worker"):
        volumes = [mount for mount in containers.inspect(service)["Mounts"] if mount["Type"] == "volume"]
        assert volumes
        # a volume without a name of its own would not be the next container's
        assert not [each["Destination"] for each in volumes if re.fullmatch("[0-9a-f]{64}", each["Name"])]


def test_bootstrap_keeps_what_there_is(containers: Composition) -> None:
    before = containers.secret("label_studio_token")

    containers.run("run", "--rm", "-T", "bootstrap")

    assert containers.secret("label_studio_token") == before
    assert len(before) == 40


def test_both_keep_their_state_in_postgresql_apart(containers: Composition, annotator: Annotator) -> None:
    query = f"SELECT count(*) FROM annotation WHERE project_id = {annotator.project_id}"
    assert int(containers.sql("tandem", query)) == 6
    assert (
        int(containers.sql("label_studio", f"SELECT count(*) FROM task WHERE project_id = {annotator.project_id}"))
        == 18
    )
    for user, database in (("tandem", "label_studio"), ("label_studio", "tandem")):
        allowed = f"SELECT has_database_privilege('{user}', '{database}', 'CONNECT')"
        assert containers.sql("postgres", allowed) == "f"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost:8080", "http://169.254.169.254/", "http://0.0.0.0:8080"]
)
def test_label_studio_still_refuses_loopback_and_metadata_addresses(annotator: Annotator, url: str) -> None:
    body = {"project": annotator.project_id, "url": url, "title": "forbidden"}
    answer = requests.post(
        f"{annotator.url}/api/ml", json=body, headers={"Authorization": f"Token {annotator.token}"}, timeout=60
    )

    assert answer.status_code in (400, 403)
    assert "reserved network address" in answer.text


def test_the_doctor_finds_nothing_wrong(containers: Composition, annotator: Annotator) -> None:
    found = json.loads(containers.run("exec", "-T", "tandem", "tandem", "doctor", "--json"))

    checks = {check["check"]: check["status"] for check in found["checks"]}
    assert found["ok"], found
    assert checks["events"] == checks["webhook address"] == checks["worker"] == "ok", found
    assert any(check["project"] == annotator.project_id for check in found["checks"])


def test_a_database_that_restarts_is_no_end(containers: Composition, tandem: Tandem, annotator: Annotator) -> None:
    containers.run("restart", "database")
    wait_for(lambda: is_answering(annotator), "Label Studio is back")

    annotator.label(annotator.unlabelled()[0])

    wait_for(lambda: learned(tandem, annotator, 7), "a version that knows the label made after the restart")


def test_a_worker_that_was_stopped_finds_what_it_missed(
    containers: Composition, tandem: Tandem, annotator: Annotator
) -> None:
    containers.run("stop", "--timeout", str(STOP_LIMIT_S), "worker")
    assert containers.inspect("worker")["State"]["ExitCode"] == 0
    annotator.label(annotator.unlabelled()[0])

    containers.run("start", "worker")

    wait_for(lambda: learned(tandem, annotator, 8), "a version that knows the label made without a worker")


@pytest.mark.parametrize("service", ["worker", "tandem", "label-studio", "database"])
def test_a_container_that_is_killed_loses_nothing(
    containers: Composition, tandem: Tandem, annotator: Annotator, service: str
) -> None:
    labelled = annotator.label(annotator.unlabelled()[0])
    n_labels = len(annotator.truth) - len(annotator.unlabelled())

    containers.run("kill", "--signal", "SIGKILL", service)
    containers.run("start", service)

    wait_for(lambda: is_answering(annotator), "Label Studio answers")
    wait_for(lambda: is_healthy(tandem.url), "Tandem answers")
    wait_for(lambda: learned(tandem, annotator, n_labels), "a version that knows the label made before")
    assert annotator.call("GET", f"/api/annotations/{labelled}/")["result"]


def test_containers_made_anew_know_everything(containers: Composition, tandem: Tandem, annotator: Annotator) -> None:
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    suggested = scores(annotator)
    n_labels = len(annotator.truth) - len(annotator.unlabelled())

    containers.run("down", "--timeout", str(STOP_LIMIT_S))
    containers.run("up", "--detach", "--no-build", "worker", "prometheus", "storage", timeout_s=600)

    # read anew: where the ports are, and what bootstrap says the token is
    label_studio = ComposedLabelStudio(containers)
    annotator.url, annotator.token = label_studio.url, label_studio.token
    tandem.url = containers.url("tandem", 9090)
    assert tandem.get(f"/api/projects/{annotator.project_id}/versions") == versions
    assert scores(annotator) == suggested
    annotator.label(annotator.unlabelled()[0])
    wait_for(lambda: learned(tandem, annotator, n_labels + 1), "a version that knows one more label")


def test_a_backup_brings_everything_back(
    containers: Composition, tandem: Tandem, annotator: Annotator, tmp_path: Path
) -> None:
    def known() -> list[Any]:
        images = [annotator.content(task) for task in annotator.tasks()[:3]]
        return [tandem.get(f"/api/projects/{annotator.project_id}/versions"), scores(annotator), images]

    before = known()
    n_labels = len(annotator.truth) - len(annotator.unlabelled())

    containers.script("back-up", str(tmp_path / "backup"))
    containers.run("down", "--volumes", "--timeout", str(STOP_LIMIT_S))
    containers.script("restore", str(tmp_path / "backup"))
    containers.run("up", "--detach", "--no-build", "worker", "prometheus", "storage", timeout_s=600)

    label_studio = ComposedLabelStudio(containers)
    annotator.url, annotator.token = label_studio.url, label_studio.token
    tandem.url = containers.url("tandem", 9090)
    assert known() == before
    annotator.label(annotator.unlabelled()[0])
    wait_for(lambda: learned(tandem, annotator, n_labels + 1), "a version that knows one more label")


def test_prometheus_watches_tandem_and_knows_the_alerts(containers: Composition) -> None:
    if not containers.has("prometheus"):
        pytest.skip("the composition runs without the profile monitoring")
    url = containers.url("prometheus", 9090)

    def targets() -> list[str]:
        active = requests.get(f"{url}/api/v1/targets", timeout=10).json()["data"]["activeTargets"]
        return [target["health"] for target in active if target["labels"]["job"] == "tandem"]

    wait_for(lambda: targets() == ["up", "up"], "Prometheus reads Tandem's metrics")
    containers.run("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    rules = requests.get(f"{url}/api/v1/rules", timeout=10).json()["data"]["groups"]
    assert [rule["health"] for group in rules for rule in group["rules"]]
    assert all(rule["health"] != "err" for group in rules for rule in group["rules"])


def test_versions_can_be_kept_on_object_storage(containers: Composition, tandem: Tandem, annotator: Annotator) -> None:
    if not containers.has("storage"):
        pytest.skip("the composition runs without the profile storage")
    address = {"ARTIFACTS_URL": "s3://tandem/versions", "AWS_ENDPOINT_URL": "http://storage:8333"}
    with_storage = replace(containers, environment=containers.environment | address)

    with_storage.run("up", "--detach", "--no-build", "worker", timeout_s=600)

    tandem.url = with_storage.url("tandem", 9090)
    other = Annotator(url=annotator.url, token=annotator.token)
    other.make_project()
    other.upload(0, 9)
    other.call("POST", "/api/ml", json={"project": other.project_id, "url": tandem.public_url, "title": "Tandem"})
    for task in other.unlabelled()[:6]:
        other.label(task)
    wait_for(lambda: learned(tandem, other, 6), "a version that knows six labels")
    stored = with_storage.python("tandem", "import s3fs; print(s3fs.S3FileSystem().find('tandem/versions'))")
    assert tandem.get(f"/api/projects/{other.project_id}/versions")[0]["version"] in stored


def scores(annotator: Annotator) -> dict[int, tuple[str, float]]:
    return {task: (each["model_version"], each["score"]) for task, each in annotator.predictions().items()}


def logs_in(url: str, user: str, password: str, *, origin: str | None = None) -> bool:
    """Whether Label Studio's own page takes a password; ``origin`` is what a browser says that the page is from."""
    page = requests.Session()
    page.get(f"{url}/user/login/", timeout=60)
    form = {"email": user, "password": password, "csrfmiddlewaretoken": page.cookies["csrftoken"]}
    page.post(f"{url}/user/login/", data=form, headers={"Origin": origin} if origin else {}, timeout=60)
    return page.get(f"{url}/api/current-user/whoami", timeout=60).status_code == 200


def is_answering(annotator: Annotator) -> bool:
    """Whether Label Studio and its database answer."""
    with contextlib.suppress(requests.RequestException, AssertionError):
        return bool(annotator.tasks())
    return False


def learned(tandem: Tandem, annotator: Annotator, n_labels: int) -> bool:
    """Whether a version, be it good enough or not, learned from so many labels, and nothing is left to do."""
    jobs = tandem.project(annotator.project_id)["jobs"]
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    return versions[:1] != [] and versions[0]["n_labels"] == n_labels and not jobs["queued"] and not jobs["running"]
