"""Real processes that are told to end, or cannot work: nothing is lost, and it does not take long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import sqlalchemy

from backend.background_process import free_port
from backend.domain import JobKind, JobStatus
from backend.supervisor import CONFIGURATION_STATUS, GRACE_S
from backend.worker import DRAIN_S
from tests.web import WebAnswer, predict_body, wait_for, web_server
from tests.world import PROJECT, World


class SlowServer:
    """A server that lets everybody wait."""

    def __init__(self, delay_s: float) -> None:
        self.asked = threading.Event()
        self.let_go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.asked.set()
                self.let_go.wait(delay_s)
                handler.send_error(404)

            def log_message(handler, *_: object) -> None:  # noqa: N805
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def slow_server(delay_s: float) -> Iterator[SlowServer]:
    server = SlowServer(delay_s)
    try:
        yield server
    finally:
        server.close()


def test_a_web_process_finishes_what_it_has_begun(learned: World) -> None:
    with slow_server(delay_s=3) as slow:
        hosts = slow.url.removeprefix("http://")
        with web_server(learned.folder, workers=1, image_hosts=hosts) as server:
            answers: list[WebAnswer] = []
            body = predict_body({900: f"{slow.url}/slow.png"})
            asking = threading.Thread(target=lambda: answers.append(server.request("POST", "/predict", body)))
            asking.start()
            assert slow.asked.wait(60)
            server.process.send_signal(signal.SIGTERM)
            told_s = time.monotonic()
            asking.join(60)
            assert server.process.wait(60) == 0
            assert time.monotonic() - told_s < GRACE_S
        (answer,) = answers
        assert answer.status == 200
        assert len(answer.json["results"]) == 1


def test_a_worker_gives_back_what_it_cannot_end_in_time(learned: World) -> None:
    """A reconciliation that hangs in a call to Label Studio, which nothing can interrupt."""
    learned.finish_jobs()
    with slow_server(delay_s=120) as slow:
        settings = {
            "MODEL_DIR": str(learned.folder),
            "LABEL_STUDIO_URL": slow.url,
            "LABEL_STUDIO_API_KEY": "0123456789abcdef",
            "LOG_FORMAT": "json",
            "METRICS_PORT": str(free_port()),
        }
        command = [sys.executable, "-m", "backend", "worker", "--no-embedder"]
        with (learned.folder / "worker.log").open("wb") as log:
            environment = {**os.environ, **settings}  # noqa: TID251 - handed on
            with subprocess.Popen(command, env=environment, stderr=log) as worker:

                def sync_runs() -> bool:
                    assert worker.poll() is None
                    jobs = learned.projects.jobs(PROJECT)
                    return any((job.kind, job.status) == (JobKind.SYNC, JobStatus.RUNNING) for job in jobs)

                wait_for(sync_runs)
                assert slow.asked.wait(60)
                with urlopen(f"http://127.0.0.1:{settings['METRICS_PORT']}/metrics", timeout=20) as metrics:
                    assert b"tandem_embedder_up 0.0" in metrics.read()
                worker.send_signal(signal.SIGTERM)
                told_s = time.monotonic()
                assert worker.wait(60) == 0
                took_s = time.monotonic() - told_s
    assert took_s < GRACE_S
    assert took_s > DRAIN_S / 2, "it did not hang, so this test shows nothing"
    given_back = next(job for job in learned.projects.jobs(PROJECT) if job.kind is JobKind.SYNC)
    assert (given_back.status, given_back.attempts) == (JobStatus.QUEUED, 0)
    assert given_back.reason == "the worker was stopped"


def test_an_older_tandem_refuses_the_state_of_a_newer_one(learned: World) -> None:
    """It says so in a line and ends, instead of starting again and again; the state stays as it is."""
    with learned.database._engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    settings = {
        "MODEL_DIR": str(learned.folder),
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "WEIGHTS": "none",
        "BACKBONE": "resnet18",
        "LOG_FORMAT": "json",
    }
    environment = {**os.environ, **settings}  # noqa: TID251 - handed on
    command = [sys.executable, "-m", "backend", "serve"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == CONFIGURATION_STATUS, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    reasons = [line["reason"] for line in lines if line["event"] == "cannot start"]
    assert reasons != []
    assert all("revision '9999'" in reason and "a newer Tandem made it" in reason for reason in reasons)
    assert "started again" not in ended.stderr
    with learned.database.snapshot() as stores:
        assert stores.versions.active(PROJECT) == learned.active
