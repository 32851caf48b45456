"""What operators see of real web processes: metrics that are right whichever process answers, and readiness."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy
import yaml

from backend.adapters.durable import exclusive_lock
from backend.background_process import free_port
from backend.domain import JobKind, JobStatus
from backend.processes import COUNTS_VARIABLE, embedder_address, embedder_lock
from tests.web import WebServer, predict_body, wait_for, web_server
from tests.world import PROJECT, World

DEPLOYED = Path(__file__).parents[2] / "deploy"
BUILT_IN_METRICS = {"up"}
UNKNOWN_IMAGES = {900: "data:image/gif;base64,R0lGODlhAQABAAAAACw=", 901: "nothing://that.is/known"}


def n_predictions(server: WebServer, images: str = "known") -> float:
    return server.metrics()["tandem_predict_duration_seconds_count"].get(f"images={images}", 0)


def n_processes_that_counted(server: WebServer) -> int:
    return len(list(server.counts.glob("histogram_*.db")))


def ask_until_both_have_answered(server: WebServer) -> int:
    asked = 0

    def both_have_answered() -> bool:
        nonlocal asked
        server.predict(1, 2, 3)
        asked += 1
        return n_processes_that_counted(server) >= 2

    wait_for(both_have_answered)
    return asked


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((DEPLOYED / "prometheus/alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((DEPLOYED / "grafana/dashboards/tandem.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


def check_sums(server: WebServer) -> None:
    """Whichever process answers tells of both, and a process that was killed still counts."""
    asked = ask_until_both_have_answered(server)
    for _ in range(5):
        assert n_predictions(server) == asked
    killed = server.workers[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in server.workers and len(server.workers) == 2)
    assert n_predictions(server) == asked
    for _ in range(10):
        server.predict(1)
    samples = server.metrics()
    assert samples["tandem_predict_duration_seconds_count"] == {"images=known": asked + 10}
    assert samples["tandem_suggestions_total"] == {"outcome=made": 3 * asked + 10, "outcome=none": 0}
    answered = samples["tandem_http_request_duration_seconds_count"]
    assert answered["method=POST,route=/predict,status=200"] == asked + 10


def check_kinds(server: WebServer) -> None:
    """Unknown images, unknown paths and what a process beside the web processes counts."""
    server.request("POST", "/predict", predict_body(UNKNOWN_IMAGES))
    server.request("GET", "/no/such/path")
    fetch = "from backend.measurements import image_fetches\nimage_fetches.labels('s3', 'not_found').inc(7)"
    environment = {**os.environ, COUNTS_VARIABLE: str(server.counts)}  # noqa: TID251 - handed on
    subprocess.run([sys.executable, "-c", fetch], env=environment, check=True)
    samples = server.metrics()
    assert samples["tandem_predict_duration_seconds_count"]["images=unknown"] == 1
    assert samples["tandem_image_fetches_total"] == {
        "outcome=fetched,scheme=data": 1,
        "outcome=forbidden,scheme=other": 1,
        "outcome=not_found,scheme=s3": 7,
    }
    assert samples["tandem_http_request_duration_seconds_count"]["method=any,route=unknown,status=404"] == 1


def check_database(server: WebServer, learned: World) -> None:
    """Jobs, labels and versions are as they are at this moment."""
    now = learned.clock.now()
    learned.finish_jobs()
    with learned.database.transaction() as stores:
        stores.jobs.enqueue(PROJECT, JobKind.PUSH, now - timedelta(days=400), now)
        running = stores.jobs.enqueue(PROJECT, JobKind.HEAD, now, now)
        stores.jobs.claim([JobKind.HEAD], "test", now + timedelta(seconds=60), now + timedelta(days=9999))
    samples = server.metrics()
    assert samples["tandem_jobs"] == {"kind=head,project=5,status=running": 1, "kind=push,project=5,status=queued": 1}
    assert samples["tandem_job_age_seconds"]["kind=push,project=5,status=queued"] > 400 * 24 * 3600
    ended = samples["tandem_job_duration_seconds_count"]
    assert ended["kind=head,status=succeeded"] > 0
    up_to_infinity = samples["tandem_job_duration_seconds_bucket"]["kind=head,le=+Inf,status=succeeded"]
    assert up_to_infinity == ended["kind=head,status=succeeded"]
    assert samples["tandem_labelled_tasks"] == samples["tandem_trained_labels"] == {"project=5": 12}
    created = samples["tandem_active_version_created_timestamp_seconds"]["project=5"]
    assert created == learned.active.created_at.timestamp()
    assert samples["tandem_database_up"] == {"": 1}
    assert 0 < samples["tandem_disk_free_bytes"][""] < samples["tandem_disk_total_bytes"][""]
    with learned.database.transaction() as stores:
        stores.jobs.finish(running.id, "test", JobStatus.FAILED, "tested", now)
    assert server.metrics()["tandem_job_duration_seconds_count"]["kind=head,status=failed"] == 1


def check_names(server: WebServer) -> None:
    """Alerts and dashboard name nothing that does not exist."""
    named = {name for expression in expressions() for name in re.findall(r"\btandem_[a-z_]+", expression)}
    assert len(named) > 10
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} <= server.metric_names()


def test_metrics_are_right_whichever_process_answers(learned: World) -> None:
    with web_server(learned.folder) as server:
        check_sums(server)
        check_kinds(server)
        check_database(server, learned)
        check_names(server)


def check_port(server: WebServer) -> None:
    """The port for metrics is open and leads to metrics only; the other one leads to none."""
    stranger = {"Authorization": ""}
    assert server.request("GET", "/metrics").status == 404
    assert server.request("GET", "/metrics", headers=stranger).status == 401
    answer = server.request("GET", "/metrics", headers=stranger, port=server.metrics_port)
    assert answer.status == 200
    assert 'tandem_tasks{project="5"} 12.0' in answer.text
    host = {"Host": f"127.0.0.1:{server.metrics_port}"}
    assert server.request("GET", "/api/projects", headers=stranger | host).status == 401
    for method, path in (("GET", "/api/projects"), ("POST", "/predict")):
        other = server.request(method, path, headers=stranger, port=server.metrics_port)
        assert '"results"' not in other.text
        assert '"class_names"' not in other.text


def check_ready(server: WebServer, learned: World) -> None:
    """Ready when database and embedder are, also for who does not know the password."""

    def ready() -> tuple[int, Any]:
        answer = server.request("GET", "/ready", headers={"Authorization": ""})
        return answer.status, answer.json

    status, body = ready()
    assert (status, body["embedder"], list(body["reasons"])) == (503, "down", ["embedder"])
    with exclusive_lock(embedder_lock(learned.folder)), socket.socket(socket.AF_UNIX) as embedder:
        assert ready() == (200, {"status": "ready", "embedder": "starting"})
        embedder.bind(str(embedder_address(learned.folder)))
        embedder.listen()
        assert ready() == (200, {"status": "ready", "embedder": "up"})
        assert server.metrics()["tandem_embedder_up"] == {"": 1}
        with learned.database._engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
        status, body = ready()
        assert status == 503
        assert "revision '9999'" in body["reasons"]["database"]
        assert server.request("GET", "/health").status == 200


def test_a_port_for_metrics_and_readiness(learned: World) -> None:
    with web_server(learned.folder, guarded=True, metrics_port=free_port()) as server:
        check_port(server)
        check_ready(server, learned)
