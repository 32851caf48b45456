"""Real web processes, started as the supervisor starts them, on a world that has learned."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from backend.background_process import free_port
from backend.commands.servers import web_arguments
from backend.processes import COUNTS_VARIABLE, counts_folder
from backend.settings import Settings
from tests.factories import make_task
from tests.world import pets

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
PASSWORD = "open sesame"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebAnswer:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    """Gunicorn's master process and what it answers."""

    port: int
    process: subprocess.Popen[bytes]
    log_file: Path
    counts: Path
    metrics_port: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def master(self) -> int:
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.master}/task/{self.master}/children")
        return [int(number) for number in path.read_text().split()]

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line of the log; each must be JSON."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        port: int | None = None,
    ) -> WebAnswer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=TIMEOUT_S)
        sent = {"Content-Type": "application/json"} | self.headers | (headers or {})
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return WebAnswer(status=answer.status, headers=answer.headers, text=text)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.request(method, path, body)
        assert answer.status == 200, answer.text
        return answer.json

    def predict(self, *task_ids: int) -> Any:
        tasks = [make_task(task_id, pets(12)[task_id]) for task_id in task_ids]
        return self.ask("POST", "/predict", predict_body({task.id: task.image_url or "" for task in tasks}))["results"]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Samples by name and then by their labels, written ``kind=push,project=5``."""
        answer = self.request("GET", "/metrics", port=self.metrics_port)
        assert answer.status == 200, answer.text
        samples: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(answer.text):
            samples.setdefault(family.name, {})
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                samples.setdefault(sample.name, {})[labels] = sample.value
        return samples

    def metric_names(self) -> set[str]:
        """Names without what a counter's or a histogram's samples have at their end."""
        return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in self.metrics()}


def predict_body(images: dict[int, str]) -> dict[str, Any]:
    tasks = [{"id": task_id, "data": {"image": image}} for task_id, image in images.items()]
    return {"project": "5.1700000000", "label_config": CONFIG, "tasks": tasks}


@contextlib.contextmanager
def web_server(
    folder: Path, *, guarded: bool = False, metrics_port: int | None = None, **settings: Any
) -> Iterator[WebServer]:
    """Two web processes on a folder, until the block ends; with ``guarded`` behind Basic auth."""
    if guarded:
        settings |= {"basic_auth_user": "annotator", "basic_auth_pass": PASSWORD}
    settings |= {"model_dir": folder, "host": "127.0.0.1", "port": free_port(), "metrics_port": metrics_port}
    used = Settings(**{"workers": 2} | settings)
    log_file = folder / "web.log"
    header = "Basic " + base64.b64encode(f"annotator:{PASSWORD}".encode()).decode()
    with counts_folder(folder) as counts, log_file.open("wb") as log:
        variables = {name.upper(): str(value) for name, value in settings.items() if value is not None}
        environment = {**os.environ, **variables, COUNTS_VARIABLE: str(counts)}  # noqa: TID251 - handed on
        with subprocess.Popen(web_arguments(used), env=environment, stderr=log) as process:
            server = WebServer(
                port=settings["port"],
                metrics_port=metrics_port,
                process=process,
                log_file=log_file,
                counts=counts,
                headers={"Authorization": header} if guarded else {},
            )

            def is_up() -> bool:
                assert process.poll() is None, log_file.read_text()
                try:
                    return server.request("GET", "/health").status == 200
                except OSError:
                    return False

            try:
                wait_for(is_up)
                wait_for(lambda: len(server.workers) == used.workers)
                yield server
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                assert process.wait(TIMEOUT_S) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)
