"""Every line of every process is JSON and says what it is about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from backend.adapters.executors import ProcessExecutor
from backend.domain import JobKind
from tests.web import predict_body, web_server
from tests.world import PROJECT, World


def lines_of(log: list[dict[str, Any]], **about: object) -> list[dict[str, Any]]:
    return [line for line in log if about.items() <= line.items()]


def test_lines_of_a_web_process_name_request_project_job_and_version(learned: World) -> None:
    with web_server(learned.folder, log_level="DEBUG", workers=1) as server:
        sent = {"X-Request-ID": "from-a-proxy:1"}
        body = predict_body({900: "nothing://that.is/known"})
        answer = server.request("POST", "/predict", body, headers=sent)
        assert answer.headers["X-Request-ID"] == "from-a-proxy:1"
        made = {
            server.request("GET", "/health", headers=given).headers["X-Request-ID"]
            for given in ({}, {"X-Request-ID": "line\tbreak {}"}, {"X-Request-ID": "x" * 129})
        }
        assert len(made) == 3
        assert all(len(each) == 32 for each in made)
        train = server.request("POST", f"/api/projects/{PROJECT}/train", {}, headers={"X-Request-ID": "train"})
        server.request("DELETE", f"/api/jobs/{train.json['id']}", headers={"X-Request-ID": "cancel"})
        server.request("POST", "/setup", {"nonsense": 1}, headers={"X-Request-ID": "refused"})
    log = server.log
    assert all({"event", "level", "timestamp", "process"} <= line.keys() for line in log)
    assert lines_of(log, process="web", event="no suggestion", request="from-a-proxy:1", project=PROJECT) != []
    (answered,) = lines_of(log, event="request answered", request="from-a-proxy:1")
    assert (answered["project"], answered["version"]) == (PROJECT, learned.active.name)
    assert answered["status"] == 200
    assert lines_of(log, event="request answered", request="train", project=PROJECT) != []
    assert lines_of(log, event="request answered", request="cancel", job=train.json["id"]) != []
    (refused,) = lines_of(log, event="request answered", request="refused")
    assert refused["level"] == "info"
    assert "project" not in refused
    assert any("Booting worker" in line["event"] for line in log)


def test_lines_of_a_child_name_its_job(learned: World, capfd: pytest.CaptureFixture[str]) -> None:
    learned.label({1: "cat"})
    with learned.database.transaction() as stores:
        job = learned.scheduler.now(stores, PROJECT, JobKind.HEAD)
    environment = {**os.environ, "MODEL_DIR": str(learned.folder)}  # noqa: TID251 - handed on
    executor = ProcessExecutor(keep_warm=False, environment=environment)
    executor.run(job, lambda _: None)
    log = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"process": "child"' in line]
    (promoted,) = [line for line in log if line["event"].startswith("version ")]
    assert (promoted["project"], promoted["job"], promoted["kind"]) == (PROJECT, job.id, "head")
    assert promoted["version"].startswith(f"p{PROJECT}-v2-")


@pytest.mark.parametrize("chosen", ["json", "console"])
def test_what_nobody_caught_is_a_line_too(chosen: str) -> None:
    script = (
        "import threading, warnings\nfrom backend.logs import configure_logs, log_what_nobody_caught\n"
        f"configure_logs('INFO', {chosen!r}, process='tested')\nlog_what_nobody_caught()\n"
        "warnings.warn('be careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\n"
        "raise ValueError('nobody caught it')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    if chosen == "console":
        assert ended.stderr.count("\n") > 10
        return
    warned, of_thread, last = [json.loads(line) for line in ended.stderr.splitlines()]
    assert "be careful" in warned["event"]
    assert "ZeroDivisionError" in of_thread["exception"]
    assert (last["level"], last["process"]) == ("critical", "tested")
    assert "nobody caught it" in last["exception"]
