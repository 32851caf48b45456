"""What benchmarks/load.py and benchmarks/soak.py send, from a process of its own, and how it was answered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks.serving_world import CLASS_NAMES, CREATED_AT, IDENTITY, LABEL_CONFIG, Photos

PROJECT = {"id": 1, "created_at": CREATED_AT, "title": "Benchmark", "label_config": LABEL_CONFIG}
FIRST_ANNOTATION = 1_000_000
START = datetime(2026, 2, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent."""

    path: str
    body: bytes


@dataclass(slots=True)
class Answers:
    """What came back: how often which status, and after how long, in seconds, by path."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, path: str, status: int, latency_s: float) -> None:
        self.statuses.setdefault(path, Counter())[status] += 1
        self.latencies_s.setdefault(path, []).append(latency_s)

    def percentiles_ms(self, path: str) -> dict[str, float]:
        """Return percentiles of the time to an answer, and the longest."""
        values = np.array(self.latencies_s.get(path) or [np.nan]) * 1000
        named = {f"p{percent}_ms": round(float(np.percentile(values, percent)), 1) for percent in (50, 95, 99)}
        return named | {"max_ms": round(float(values.max()), 1)}


def annotation_event(photos: Photos, number: int, n_tasks: int, version: int = 0) -> Request:
    """Return the event of one annotation; a later version of it is an update to another class."""
    task = photos.task(number % n_tasks + 1)
    name = CLASS_NAMES[(task["id"] + (version and number % 7 == 0)) % len(CLASS_NAMES)]
    region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
    annotation = {
        "id": FIRST_ANNOTATION + number,
        "task": task["id"],
        "result": [region],
        "updated_at": (START + timedelta(seconds=version)).isoformat(),
        "completed_by": number // n_tasks + 2,
    }
    action = "ANNOTATION_UPDATED" if version else "ANNOTATION_CREATED"
    event = {"action": action, "project": PROJECT, "task": task, "annotation": annotation}
    return Request("/webhook", json.dumps(event).encode())


def suggestion_request(photos: Photos, number: int, n_tasks: int) -> Request:
    """Return what asks for the suggestion of one task."""
    body = {"tasks": [photos.task(number % n_tasks + 1)], "project": IDENTITY, "label_config": LABEL_CONFIG}
    return Request("/predict", json.dumps(body).encode())


def send(port: int, requests: Iterable[Request], n_clients: int, per_s: float | None = None) -> Answers:
    """Send everything from that many clients, each as soon as it is free, or so many a second in all."""
    lock = threading.Lock()
    remaining: Iterator[tuple[int, Request]] = enumerate(requests)
    answers = Answers()
    started_s = time.perf_counter()

    def work(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number, request = next(remaining, (0, None))
            if request is None:
                break
            if per_s:
                time.sleep(max(0.0, started_s + number / per_s - time.perf_counter()))
            asked_s = time.perf_counter()
            status = _exchange(connection, request)
            with lock:
                answers.add(request.path, status, time.perf_counter() - asked_s)
        connection.close()

    with ThreadPoolExecutor(n_clients) as clients:
        list(clients.map(work, range(n_clients)))
    return answers


def _exchange(connection: http.client.HTTPConnection, request: Request) -> int:
    """Return the status of the answer, 0 for none."""
    try:
        connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0
