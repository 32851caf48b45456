"""How long a label takes to become a newer active version, and a pushed suggestion.

    python benchmarks/loop.py [--labels 50 500 5000] [--repeats 5] [--output benchmarks/results/loop.json]

A real web process and a real worker run on loopback with TRAIN_QUIET_S=0. Features are synthetic (ten classes, a
pool of 1,000 unlabelled images), stored as if images had been embedded; in place of Label Studio stands a server that
accepts predictions and forgets them, so that only Tandem's own time is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import requests
from rich.console import Console
from rich.table import Table

from backend.background_process import free_port
from backend.bootstrap import Container
from backend.domain import Annotation, ProjectIdentity, Task
from backend.label_studio.codecs import read_label_config
from backend.settings import Settings

CLASS_NAMES = [f"class {number}" for number in range(10)]
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in CLASS_NAMES)
    + "</Choices></View>"
)
CREATED = datetime(2026, 1, 1, tzinfo=UTC)
BLOCK_SIZES = (112, 160, 960)
BACKBONE_DIGEST = hashlib.sha256(b"synthetic").hexdigest()
N_POOL = 1000
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Medians, and the slowest, over the repeats; seconds from the submitted label."""

    n_labels: int
    repeats: int
    webhook_s: float
    active_s: float
    active_worst_s: float
    pushed_s: float
    pushed_worst_s: float


class LabelStudioStandIn(BaseHTTPRequestHandler):
    """Accepts predictions; remembers only the project's model version and when it was set."""

    model_version: str | None = None
    n_predictions: dict[str, int]

    def do_GET(self) -> None:
        if self.path.startswith("/api/projects/1/model-versions"):
            self._answer(self.n_predictions)
        elif self.path.startswith("/api/projects/1"):
            self._answer(project_payload() | {"model_version": type(self).model_version})
        else:
            # a stand-in has no tasks to reconcile with
            self._answer({}, 404)

    def do_POST(self) -> None:
        rows = self._body()
        if rows and "model_version" in rows[0]:
            self.n_predictions[rows[0]["model_version"]] = self.n_predictions.get(rows[0]["model_version"], 0) + len(
                rows
            )
        self._answer({"created": len(rows)}, 201)

    def do_PATCH(self) -> None:
        type(self).model_version = self._body()["model_version"]
        self._answer({})

    def do_DELETE(self) -> None:
        self.n_predictions.pop(self._body().get("model_version"), None)
        self._answer({})

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def project_payload() -> dict[str, Any]:
    return {"id": 1, "created_at": CREATED.isoformat(), "title": "Benchmark", "label_config": LABEL_CONFIG}


def fill(settings: Settings, n_labels: int) -> None:
    """Store tasks, annotations and features as they would be after `n_labels` labels."""
    container = Container(settings)
    random = np.random.default_rng(0)
    n_images = n_labels + N_POOL + 100
    classes = np.arange(n_images) % len(CLASS_NAMES)
    centres = np.abs(random.normal(1.0, 0.25, (len(CLASS_NAMES), sum(BLOCK_SIZES))))
    features = np.abs(centres[classes] + random.normal(0.0, 0.8, (n_images, sum(BLOCK_SIZES)))).astype(np.float16)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(n_images)]
    container.features.append(BACKBONE_DIGEST, digests, features, block_sizes=BLOCK_SIZES)
    tasks = [
        Task(id=number + 1, image_url=f"/data/upload/{number}.png", image_digest=digests[number])
        for number in range(n_images)
    ]
    with container.database.transaction() as stores:
        identity = ProjectIdentity(label_studio_id=1, created_stamp=int(CREATED.timestamp()))
        project = stores.projects.resolve(identity)
        config = read_label_config(LABEL_CONFIG)
        stores.projects.save(replace(project, label_config=config, backbone_digest=BACKBONE_DIGEST, title="Benchmark"))
        stores.tasks.upsert(project.id, tasks)
        for task in tasks:
            stores.tasks.record_image(project.id, replace(task, backbone_digest=BACKBONE_DIGEST))
        annotations = [
            Annotation(
                id=number + 1, task_id=number + 1, class_names=(CLASS_NAMES[classes[number]],), updated_at=CREATED
            )
            for number in range(n_labels - 1)
        ]
        stores.annotations.upsert(project.id, annotations)


def submit(url: str, task_id: int) -> None:
    """Send the webhook event of one submitted label."""
    now = datetime.now(UTC)
    class_name = CLASS_NAMES[(task_id - 1) % len(CLASS_NAMES)]
    region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}
    event = {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": task_id, "task": task_id, "result": [region], "updated_at": now.isoformat()},
        "task": {"id": task_id, "data": {"image": f"/data/upload/{task_id - 1}.png"}},
        "project": project_payload(),
    }
    requests.post(f"{url}/webhook", json=event, timeout=10).raise_for_status()


@contextmanager
def running(environment: dict[str, str], *arguments: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def wait_for(question: Callable[[], bool], what: str) -> float:
    """Return the moment on the monotonic clock at which the answer became yes."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if question():
            return time.monotonic()
        time.sleep(0.02)
    raise SystemExit(f"not within {TIMEOUT_S:.0f} s: {what}")


def active(url: str) -> dict[str, Any]:
    versions = requests.get(f"{url}/api/projects/1/versions", timeout=10).json()
    return next((version for version in versions if version["status"] == "active"), {"n_labels": 0, "version": ""})


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=1).ok
    except requests.RequestException:
        return False


def measure(n_labels: int, repeats: int) -> Measurement:
    LabelStudioStandIn.model_version, LabelStudioStandIn.n_predictions = None, {}
    stand_in = ThreadingHTTPServer(("127.0.0.1", 0), LabelStudioStandIn)
    threading.Thread(target=stand_in.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        variables = {
            "LABEL_STUDIO_URL": f"http://127.0.0.1:{stand_in.server_port}",
            "LABEL_STUDIO_API_KEY": "0123456789abcdef",
            "MODEL_DIR": folder,
            "PORT": str(port),
            "TRAIN_QUIET_S": "0",
            "FINETUNE_MIN_LABELS": "1000000",
            "SYNC_INTERVAL_S": "100000",
        }
        settings = Settings(**{name.lower(): value for name, value in variables.items()})  # type: ignore[arg-type]
        fill(settings, n_labels)
        url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, **variables}  # noqa: TID251 - handed on to a child
        web = ("gunicorn", "backend.app:create_app()", "--bind", f"127.0.0.1:{port}", "--no-control-socket")
        with running(environment, *web, "--worker-class", "gthread", "--threads", "8"):
            wait_for(lambda: is_up(url), "web server")
            with running(environment, "backend", "worker", "--no-embedder"):
                submit(url, n_labels)
                wait_for(lambda: active(url)["n_labels"] == n_labels, "first version")
                samples = [measure_label(url, n_labels + 1 + repeat) for repeat in range(repeats)]
    stand_in.shutdown()
    webhook_s, active_s, pushed_s = zip(*samples, strict=True)
    return Measurement(
        n_labels=n_labels,
        repeats=repeats,
        webhook_s=statistics.median(webhook_s),
        active_s=statistics.median(active_s),
        active_worst_s=max(active_s),
        pushed_s=statistics.median(pushed_s),
        pushed_worst_s=max(pushed_s),
    )


def measure_label(url: str, task_id: int) -> tuple[float, float, float]:
    time.sleep(1.0)
    wait_for(lambda: LabelStudioStandIn.model_version == active(url)["version"], "push of the version before")
    started = time.monotonic()
    submit(url, task_id)
    submitted = time.monotonic()
    became_active = wait_for(lambda: bool(active(url)["n_labels"] == task_id), f"version with {task_id} labels")
    name = active(url)["version"]
    pushed = wait_for(lambda: LabelStudioStandIn.model_version == name, f"push of {name}")
    return submitted - started, became_active - started, pushed - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    measurements = [measure(n_labels, arguments.repeats) for n_labels in arguments.labels]
    table = Table("labels", "webhook s", "active s", "worst", "pushed s", "worst", title="From a submitted label to …")
    for each in measurements:
        seconds = (each.webhook_s, each.active_s, each.active_worst_s, each.pushed_s, each.pushed_worst_s)
        table.add_row(str(each.n_labels), *(f"{value:.3f}" for value in seconds))
    Console().print(table)
    if arguments.output:
        machine = {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        report = {"machine": machine, "load": os.getloadavg()[0], "results": [asdict(each) for each in measurements]}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
