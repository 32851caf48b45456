"""A project as it is after some labels, web and worker around it, and a stand-in for Label Studio.

The stand-in accepts predictions and forgets them, and keeps views, so that only Tandem's own time is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import requests
from numpy.typing import NDArray

from backend.background_process import free_port
from backend.bootstrap import Container
from backend.domain import Annotation, ProjectIdentity, Task
from backend.label_studio.codecs import read_label_config
from backend.ports import Database
from backend.settings import Settings

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
BACKBONE_DIGEST = hashlib.sha256(b"benchmark").hexdigest()
N_CLASSES = 10
BLOCK_SIZES = (40, 112, 960)
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImages:
    """Images in the order in which they get their labels: the class of each, and its features."""

    class_names: tuple[str, ...]
    classes: NDArray[np.intp]
    features: NDArray[np.float16]
    block_sizes: tuple[int, ...]

    @classmethod
    def synthetic(cls, n_images: int) -> KnownImages:
        """Draw features of ten classes around their centres, as wide as those of a mobile network."""
        random = np.random.default_rng(0)
        classes = np.arange(n_images) % N_CLASSES
        centres = np.abs(random.normal(1.0, 0.25, (N_CLASSES, sum(BLOCK_SIZES))))
        features = np.abs(centres[classes] + random.normal(0.0, 0.8, (n_images, sum(BLOCK_SIZES)))).astype(np.float16)
        names = tuple(f"class {number}" for number in range(N_CLASSES))
        return cls(class_names=names, classes=classes, features=features, block_sizes=BLOCK_SIZES)

    def first(self, n_images: int) -> KnownImages:
        """Return the first of them."""
        return replace(self, classes=self.classes[:n_images], features=self.features[:n_images])

    @property
    def project(self) -> dict[str, Any]:
        """Return the project of these images as Label Studio's events and API tell it."""
        choices = "".join(f"<Choice value={quoteattr(name)}/>" for name in self.class_names)
        config = (
            '<View><Image name="image" value="$image"/>'
            f'<Choices name="choice" toName="image">{choices}</Choices></View>'
        )
        return {"id": 1, "created_at": CREATED.isoformat(), "title": "Benchmark", "label_config": config}

    def class_name(self, task_id: int) -> str:
        """Return what is to be seen; tasks count from 1."""
        return self.class_names[self.classes[task_id - 1]]


class LabelStudioStandIn(BaseHTTPRequestHandler):
    """Accepts predictions; remembers only the project's model version and its views."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    project: dict[str, Any]
    model_version: str | None = None
    n_predictions: dict[str, int]
    views: list[dict[str, Any]]

    def do_GET(self) -> None:
        if self.path.startswith("/api/dm/views"):
            self._answer(self.views)
        elif self.path.startswith("/api/dm/columns"):
            self._answer({"columns": []})
        elif self.path.startswith("/api/projects/1/model-versions"):
            self._answer(self.n_predictions)
        elif self.path.startswith("/api/projects/1"):
            self._answer(self.project | {"model_version": type(self).model_version})
        else:
            # a stand-in has no tasks to reconcile with
            self._answer({}, 404)

    def do_POST(self) -> None:
        rows = self._body()
        if self.path.startswith("/api/dm/views"):
            self.views.append({"id": len(self.views) + 1, "data": rows["data"]})
            self._answer(self.views[-1], 201)
            return
        if rows and "model_version" in rows[0]:
            self.n_predictions[rows[0]["model_version"]] = self.n_predictions.get(rows[0]["model_version"], 0) + len(
                rows
            )
        self._answer({"created": len(rows)}, 201)

    def do_PATCH(self) -> None:
        changed = self._body()
        view = re.fullmatch(r"/api/dm/views/(\d+)/", self.path)
        if view:
            self.views[int(view[1]) - 1]["data"] = changed["data"]
        elif "model_version" in changed:
            type(self).model_version = changed["model_version"]
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


def fill(settings: Settings, images: KnownImages, n_labels: int) -> Database:
    """Store tasks, annotations and features as they would be one label before `n_labels`, and return where."""
    container = Container(settings)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(images.classes))]
    container.features.append(BACKBONE_DIGEST, digests, images.features, block_sizes=images.block_sizes)
    tasks = [
        Task(id=number, image_url=f"/data/upload/{number}.png", image_digest=digest)
        for number, digest in enumerate(digests, start=1)
    ]
    annotations = [
        Annotation(id=task.id, task_id=task.id, class_names=(images.class_name(task.id),), updated_at=CREATED)
        for task in tasks[: n_labels - 1]
    ]
    with container.database.transaction() as stores:
        identity = ProjectIdentity(label_studio_id=1, created_stamp=int(CREATED.timestamp()))
        project = stores.projects.resolve(identity)
        config = read_label_config(images.project["label_config"])
        stores.projects.save(replace(project, label_config=config, backbone_digest=BACKBONE_DIGEST, title="Benchmark"))
        stores.tasks.upsert(project.id, tasks)
        for task in tasks:
            stores.tasks.record_image(project.id, replace(task, backbone_digest=BACKBONE_DIGEST))
        stores.annotations.upsert(project.id, annotations)
    return container.database


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A running Tandem."""

    images: KnownImages
    url: str
    database: Database
    processes: tuple[int, ...]

    def submit(self, task_id: int) -> None:
        """Send the webhook event of one submitted label."""
        value = {"choices": [self.images.class_name(task_id)]}
        region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": value}
        now = datetime.now(UTC).isoformat()
        event = {
            "action": "ANNOTATION_CREATED",
            "annotation": {"id": task_id, "task": task_id, "result": [region], "updated_at": now},
            "task": {"id": task_id, "data": {"image": f"/data/upload/{task_id}.png"}},
            "project": self.images.project,
        }
        requests.post(f"{self.url}/webhook", json=event, timeout=10).raise_for_status()

    def cpu_seconds(self) -> float:
        """Return the processor time of all processes so far."""
        return sum(map(cpu_seconds, self.processes))


@contextmanager
def world(images: KnownImages, n_labels: int) -> Iterator[World]:
    """Run web and worker for a project that is one label before `n_labels`."""
    LabelStudioStandIn.project, LabelStudioStandIn.model_version = images.project, None
    LabelStudioStandIn.n_predictions, LabelStudioStandIn.views = {}, []
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
        database = fill(settings, images, n_labels)
        url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, **variables}  # noqa: TID251 - handed on to a child
        web = ("gunicorn", "backend.app:create_app()", "--bind", f"127.0.0.1:{port}", "--no-control-socket")
        with running(environment, *web, "--worker-class", "gthread", "--threads", "8") as web_process:
            wait_for(lambda: is_up(url), "web server")
            with running(environment, "backend", "worker", "--no-embedder") as worker:
                yield World(images=images, url=url, database=database, processes=(web_process, worker))
    stand_in.shutdown()


@contextmanager
def running(environment: dict[str, str], *arguments: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.pid
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


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=1).ok
    except requests.RequestException:
        return False


def cpu_seconds(process: int) -> float:
    """Return the processor time of a process and of all that descend from it, those that ended too."""
    folder = Path("/proc") / str(process)
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ended = sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    children = (folder / "task" / str(process) / "children").read_text().split()
    return time.clock_gettime(clock_of(process)) + ended + sum(cpu_seconds(int(child)) for child in children)


def clock_of(process: int) -> int:
    """Return the clock of a process's processor time, which counts nanoseconds: what clock_getcpuclockid returns."""
    return (~process << 3) | 2
