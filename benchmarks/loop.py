"""How long a label takes to become a newer active version, and a pushed suggestion.

    python benchmarks/loop.py [--labels 32 50 500 5000] [--repeats 5] [--output benchmarks/results/loop.json]

A real web process and a real worker run on loopback with TRAIN_QUIET_S=0. Features are synthetic (ten classes, a
pool of 1,000 unlabelled images), stored as if images had been embedded; in place of Label Studio stands a server that
accepts predictions and forgets them, and keeps views, so that only Tandem's own time is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import requests
from rich.console import Console
from rich.table import Table

from backend.background_process import free_port
from backend.bootstrap import Container
from backend.domain import Annotation, JobKind, JobStatus, ModelVersion, ProjectIdentity, Task, VersionStatus
from backend.label_studio.codecs import read_label_config
from backend.ports import Database
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
    """Medians, and the slowest, over the repeats; seconds from the submitted label.

    ``cpu_s`` is what all processes of Tandem compute until what to label next is chosen and shown, too;
    ``cpu_pushed_s`` until the suggestions are pushed.
    """

    n_labels: int
    repeats: int
    cpu_s: float
    cpu_pushed_s: float
    webhook_s: float
    active_s: float
    active_worst_s: float
    pushed_s: float
    pushed_worst_s: float
    chosen_s: float


class LabelStudioStandIn(BaseHTTPRequestHandler):
    """Accepts predictions; remembers only the project's model version and its views."""

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
            self._answer(project_payload() | {"model_version": type(self).model_version})
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


def project_payload() -> dict[str, Any]:
    return {"id": 1, "created_at": CREATED.isoformat(), "title": "Benchmark", "label_config": LABEL_CONFIG}


def fill(settings: Settings, n_labels: int) -> Database:
    """Store tasks, annotations and features as they would be after `n_labels` labels, and return where."""
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
    return container.database


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


def newest(database: Database) -> ModelVersion | None:
    """Return the newest version of which it is decided whether it serves; asking costs Tandem nothing."""
    with database.snapshot() as stores:
        decided = (each for each in stores.versions.all(1) if each.status is not VersionStatus.CANDIDATE)
        return next(decided, None)


def has_learned(database: Database, n_labels: int) -> bool:
    version = newest(database)
    return version is not None and version.n_labels == n_labels


def has_chosen(database: Database, since: datetime) -> bool:
    """Tell whether what to label next was chosen and shown since a moment."""
    with database.snapshot() as stores:
        last = stores.jobs.newest(1, JobKind.QUERY)
    if last is not None and last.status is JobStatus.FAILED:
        raise SystemExit(f"what to label next was not chosen: {last.reason}")
    return last is not None and last.created_at > since and last.status is JobStatus.SUCCEEDED


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=1).ok
    except requests.RequestException:
        return False


def measure(n_labels: int, repeats: int) -> Measurement:
    LabelStudioStandIn.model_version, LabelStudioStandIn.n_predictions, LabelStudioStandIn.views = None, {}, []
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
        database = fill(settings, n_labels)
        url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, **variables}  # noqa: TID251 - handed on to a child
        web = ("gunicorn", "backend.app:create_app()", "--bind", f"127.0.0.1:{port}", "--no-control-socket")
        with running(environment, *web, "--worker-class", "gthread", "--threads", "8") as web_process:
            wait_for(lambda: is_up(url), "web server")
            with running(environment, "backend", "worker", "--no-embedder") as worker:
                submit(url, n_labels)
                wait_for(lambda: has_learned(database, n_labels), "first version")
                processes = (web_process, worker)
                tries = (
                    measure_label(url, database, processes, n_labels + 1 + number) for number in range(3 * repeats)
                )
                samples = list(islice((sample for sample in tries if sample), repeats))
    stand_in.shutdown()
    cpu_s, cpu_pushed_s, webhook_s, active_s, pushed_s, chosen_s = zip(*samples, strict=True)
    return Measurement(
        n_labels=n_labels,
        repeats=repeats,
        cpu_s=statistics.median(cpu_s),
        cpu_pushed_s=statistics.median(cpu_pushed_s),
        webhook_s=statistics.median(webhook_s),
        active_s=statistics.median(active_s),
        active_worst_s=max(active_s),
        pushed_s=statistics.median(pushed_s),
        pushed_worst_s=max(pushed_s),
        chosen_s=statistics.median(chosen_s),
    )


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


def measure_label(url: str, database: Database, processes: Sequence[int], task_id: int) -> tuple[float, ...] | None:
    """Return processor and other seconds of one label; nothing where the newer version was no better, and rejected."""
    time.sleep(2.0)
    cpu_before = sum(map(cpu_seconds, processes))
    started, moment = time.monotonic(), datetime.now(UTC)
    submit(url, task_id)
    submitted = time.monotonic()
    decided = wait_for(lambda: has_learned(database, task_id), f"version with {task_id} labels")
    version = newest(database)
    if version is None or version.status is not VersionStatus.ACTIVE:
        return None
    pushed = wait_for(lambda: LabelStudioStandIn.model_version == version.name, f"push of {version.name}")
    cpu_pushed_s = sum(map(cpu_seconds, processes)) - cpu_before
    chosen = wait_for(lambda: has_chosen(database, moment), "choice of what to label next")
    cpu_s = sum(map(cpu_seconds, processes)) - cpu_before
    return cpu_s, cpu_pushed_s, submitted - started, decided - started, pushed - started, chosen - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[32, 50, 500, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    measurements = [measure(n_labels, arguments.repeats) for n_labels in arguments.labels]
    table = Table(
        *("labels", "cpu s", "cpu s until pushed", "webhook s", "active s", "worst", "pushed s", "worst", "chosen s"),
        title="From a submitted label to …",
    )
    for each in measurements:
        n_labels, _, *seconds = asdict(each).values()
        table.add_row(str(n_labels), *(f"{value:.3f}" for value in seconds))
    Console().print(table)
    if arguments.output:
        machine = {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        report = {"machine": machine, "load": os.getloadavg()[0], "results": [asdict(each) for each in measurements]}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
