"""A real web server whose requests for suggestions all hang: Label Studio's events are answered all the same."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from backend.adapters.database import SqlDatabase
from backend.admission import WAITING_PER_WORKING
from backend.background_process import free_port
from backend.commands.servers import web_arguments
from backend.settings import Settings
from tests.factories import make_task
from tests.world import World, pets

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
N_ADMITTED = 1 + WAITING_PER_WORKING
N_REFUSED = 40
N_EVENTS = 400
PROJECT_PAYLOAD = {"id": 5, "created_at": "2023-11-14T22:13:20Z", "label_config": CONFIG}


class StuckImages(ThreadingHTTPServer):
    """Takes every request for an image and answers none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StuckImage)
        self.asked = threading.Semaphore(0)
        self.released = threading.Event()


class StuckImage(BaseHTTPRequestHandler):
    server: StuckImages

    def do_GET(self) -> None:
        self.server.asked.release()
        self.server.released.wait(60)


@pytest.fixture
def images() -> Iterator[StuckImages]:
    server = StuckImages()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server with one place at work, for a project that has a version."""
    database = SqlDatabase(f"sqlite:///{tmp_path / 'tandem.sqlite3'}")
    database.migrate()
    World(tmp_path, database).learn(pets(12))
    database.close()
    port = free_port()
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("IMAGE_HOSTS", "127.0.0.1")
    monkeypatch.setenv("THREADS", "1")
    settings = Settings(host="127.0.0.1", port=port)  # type: ignore[call-arg]
    with subprocess.Popen(web_arguments(settings)) as process:
        url = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + 60
        while not is_up(url):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False


def test_events_are_answered_while_requests_for_suggestions_hang(url: str, images: StuckImages) -> None:
    def ask(number: int) -> requests.Response:
        task = {"id": 1000 + number, "data": {"image": f"http://127.0.0.1:{images.server_port}/{number}.png"}}
        body = {"project": "5.1700000000", "label_config": CONFIG, "tasks": [task]}
        return requests.post(f"{url}/predict", json=body, timeout=60)

    with ThreadPoolExecutor(N_ADMITTED + N_REFUSED) as clients:
        asked = [clients.submit(ask, number) for number in range(N_ADMITTED + N_REFUSED)]
        assert images.asked.acquire(timeout=30)
        answered: list[float] = []
        for number in range(20):
            event = {
                "action": "TASKS_CREATED",
                "project": PROJECT_PAYLOAD,
                "tasks": [{"id": 2000 + number, "data": {"image": "/data/upload/5/a.png"}}],
            }
            started_s = time.monotonic()
            assert requests.post(f"{url}/webhook", json=event, timeout=10).status_code == 200
            answered.append(time.monotonic() - started_s)
        # Label Studio waits for a second
        assert sorted(answered)[len(answered) // 2] < 1.0
        assert requests.get(f"{url}/health", timeout=10).ok
        images.released.set()
        answers = [future.result() for future in asked]

    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == N_REFUSED
    for answer in refused:
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert json.loads(answer.content)["error"]["code"] == "overloaded"


def test_no_event_of_many_clients_at_once_is_lost(url: str, tmp_path: Path) -> None:
    """What benchmarks/load.py does with 10,000 events, beside a training."""

    def label(number: int) -> int:
        task = {"id": number % 12 + 1, "data": {"image": make_task(number % 12 + 1, "cat").image_url}}
        region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
        annotation = {
            "id": 10_000 + number,
            "task": task["id"],
            "result": [region],
            "updated_at": "2026-01-01T00:00:00Z",
        }
        event = {"action": "ANNOTATION_CREATED", "project": PROJECT_PAYLOAD, "task": task, "annotation": annotation}
        return requests.post(f"{url}/webhook", json=event, timeout=30).status_code

    def ask(number: int) -> int:
        task = {"id": number % 12 + 1, "data": {"image": make_task(number % 12 + 1, "cat").image_url}}
        body = {"project": "5.1700000000", "label_config": CONFIG, "tasks": [task]}
        return requests.post(f"{url}/predict", json=body, timeout=30).status_code

    with ThreadPoolExecutor(20) as clients:
        labelled = clients.map(label, range(N_EVENTS))
        asked = clients.map(ask, range(40))
        assert set(labelled) == {200}
        assert set(asked) <= {200, 503}
    with closing(sqlite3.connect(tmp_path / "tandem.sqlite3")) as connection:
        stored = connection.execute("SELECT count(*) FROM annotation WHERE id >= 10000").fetchone()[0]
        queued = connection.execute("SELECT kind FROM job WHERE status = 'queued'").fetchall()
    assert stored == N_EVENTS
    assert len(queued) == len(set(queued)), "one queued job of a kind, however many events ask for it"
