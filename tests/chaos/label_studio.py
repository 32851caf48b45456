"""A Label Studio of the tests: it keeps the truth, speaks the API that Tandem uses, can die, and come back.

What it does is what a real 1.23.2 was seen to do. It dies as a process does that is killed: its port is closed, and
whoever waits for an answer is left without one, whether or not what was asked for has been done.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from backend.background_process import free_port
from tests.e2e.loop import LABEL_CONFIG, region

PROJECT_ID = 1
TITLE = "Tandem"
Json = dict[str, Any]


class Refused(Exception):
    """A request that Label Studio refuses; ``status`` is the HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Truth:
    """All that Label Studio knows of one project; the caller of a method holds ``lock``."""

    backend_url: str
    created_at: str = "2026-01-01T00:00:00.000000Z"
    model_version: str | None = TITLE
    sampling: str = "Sequential sampling"
    tasks: dict[int, Json] = field(default_factory=dict)
    annotations: dict[int, Json] = field(default_factory=dict)
    predictions: list[Json] = field(default_factory=list)
    webhooks: dict[int, Json] = field(default_factory=dict)
    views: dict[int, Json] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    last_id: int = 0
    last_moment: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def identity(self) -> str:
        """The project as requests for suggestions name it."""
        return f"{PROJECT_ID}.{int(datetime.fromisoformat(self.created_at).timestamp())}"

    def take_over(self, other: Truth) -> None:
        """Hold the tasks and annotations of another, and nothing else of it."""
        self.tasks, self.annotations, self.pictures = dict(other.tasks), dict(other.annotations), dict(other.pictures)
        self.last_id, self.last_moment = other.last_id, other.last_moment

    def new_id(self) -> int:
        """Return an id that nothing else has or had."""
        self.last_id += 1
        return self.last_id

    def moment(self) -> str:
        """Return the present moment, later than the last one that was asked for."""
        self.last_moment = max(datetime.now(UTC), self.last_moment + timedelta(microseconds=1))
        return self.last_moment.isoformat().replace("+00:00", "Z")

    def project(self) -> Json:
        """Return the project as events and the API tell it."""
        return {
            "id": PROJECT_ID,
            "title": "Colours",
            "created_at": self.created_at,
            "label_config": LABEL_CONFIG,
            "model_version": self.model_version,
            "sampling": self.sampling,
            "task_number": len(self.tasks),
            "total_annotations_number": len(self.annotations),
        }

    def add_task(self, name: str, picture: bytes) -> Json:
        """Store an upload as a new task."""
        url = f"/data/upload/{PROJECT_ID}/{name}"
        self.pictures[url] = picture
        task_id = self.new_id()
        self.tasks[task_id] = {"id": task_id, "data": {"image": url}, "project": PROJECT_ID}
        return self.tasks[task_id]

    def delete_task(self, task_id: int) -> None:
        """Delete a task with its annotations and predictions."""
        del self.tasks[task_id]
        self.annotations = {key: each for key, each in self.annotations.items() if each["task"] != task_id}
        self.predictions = [each for each in self.predictions if each["task"] != task_id]

    def annotate(self, task_id: int, class_name: str | None, annotation_id: int | None = None) -> Json:
        """Store a new annotation, or change one; without a class the task was skipped."""
        made = {
            "id": annotation_id or self.new_id(),
            "task": task_id,
            "result": [region(class_name)] if class_name else [],
            "was_cancelled": class_name is None,
            "ground_truth": False,
            "updated_at": self.moment(),
            "completed_by": 1,
        }
        self.annotations[made["id"]] = made
        return made

    def labels(self) -> dict[int, tuple[int, str | None, str]]:
        """Return task, class and moment of each annotation by its id."""
        return {
            each["id"]: (
                each["task"],
                each["result"][0]["value"]["choices"][0] if each["result"] else None,
                each["updated_at"],
            )
            for each in self.annotations.values()
        }

    def unlabelled(self) -> set[int]:
        """Return the tasks without a label; a skipped one has none."""
        return set(self.tasks) - {each["task"] for each in self.annotations.values() if each["result"]}

    def counts(self) -> Counter[str]:
        """Return the number of predictions of each version, and the title of the backend."""
        return Counter(each["model_version"] for each in self.predictions)

    def delete_predictions(self, version: str) -> None:
        """Delete the predictions of a version; the pointer is cleared as Label Studio does it."""
        self.predictions = [each for each in self.predictions if each["model_version"] != version]
        if self.model_version in (version, TITLE):
            self.model_version = None

    def point(self, version: str | None) -> None:
        """Make a version the project's."""
        if version and version != TITLE and version not in self.counts():
            raise Refused(400)
        self.model_version = version


class LabelStudio:
    """The server around the truth, always on the same port."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.port = free_port()
        self.n_deaths = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where it is, or will be again."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._server is not None

    def start(self) -> None:
        """Come up, or back."""
        self._server = _Server(self.port, self.truth)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def die(self) -> None:
        """Go down at once, in the middle of whatever is asked."""
        server, self._server = self._server, None
        if server:
            self.n_deaths += 1
            server.is_dying = True
            server.break_connections()
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int, truth: Truth) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.truth = truth
        self.is_dying = False
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class calls them so

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        truth = self.server.truth
        with truth.lock:
            if self.server.is_dying:
                return self._give_up()
            if parts.path.startswith("/data/"):
                picture = truth.pictures.get(parts.path)
                return self._answer(404 if picture is None else 200, picture or b"", "image/png")
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            asked = Asked(truth=truth, query=query, body=json.loads(body or b"null"))
            status, content = answer(self.command, parts.path.rstrip("/"), asked)
        if self.server.is_dying:
            return self._give_up()
        return self._answer(status, json.dumps(content).encode(), "application/json")

    def _give_up(self) -> None:
        """Answer nothing; a connection that was made while the others were broken must not stay open either."""
        self.close_connection = True

    def _answer(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@dataclass
class Asked:
    """A request to the API."""

    truth: Truth
    query: dict[str, str]
    body: Any

    def project(self) -> Any:
        return self.truth.project()

    def change_project(self) -> Any:
        if "model_version" in self.body:
            self.truth.point(self.body["model_version"])
        self.truth.sampling = self.body.get("sampling", self.truth.sampling)
        return self.truth.project()

    def projects(self) -> Any:
        return {"results": [{"id": PROJECT_ID}], "next": None}

    def backends(self) -> Any:
        return [{"id": 1, "url": self.truth.backend_url, "title": TITLE}]

    def list_tasks(self) -> Any:
        after = json.loads(self.query["query"])["filters"]["items"][0]["value"]
        ids = sorted(task_id for task_id in self.truth.tasks if task_id > after)[: int(self.query["page_size"])]
        of_task: dict[int, list[Json]] = {task_id: [] for task_id in ids}
        for each in self.truth.annotations.values():
            if each["task"] in of_task:
                of_task[each["task"]].append(each)
        return {"tasks": [{**self.truth.tasks[task_id], "annotations": of_task[task_id]} for task_id in ids]}

    def webhooks(self) -> Any:
        return list(self.truth.webhooks.values())

    def create_webhook(self) -> Any:
        webhook = {**self.body, "id": self.truth.new_id()}
        self.truth.webhooks[webhook["id"]] = webhook
        return webhook

    def model_versions(self) -> Any:
        return {**self.truth.counts(), TITLE: 0}

    def delete_predictions(self) -> Any:
        self.truth.delete_predictions(self.body["model_version"])
        return None

    def import_predictions(self) -> Any:
        if any(each["task"] not in self.truth.tasks for each in self.body):
            raise Refused(400)
        self.truth.predictions += copy.deepcopy(self.body)
        return {"created": len(self.body)}

    def columns(self) -> Any:
        shown = {"explore": True, "labeling": False}
        of_task = [{"id": name, "parent": "", "visibility_defaults": shown} for name in ("id", "data", "updated_at")]
        return {"columns": [*of_task, {"id": "image", "parent": "data", "visibility_defaults": shown}]}

    def views(self) -> Any:
        return list(self.truth.views.values())

    def create_view(self) -> Any:
        view = {"id": self.truth.new_id(), "data": self.body["data"]}
        self.truth.views[view["id"]] = view
        return view

    def change_view(self, view_id: str) -> Any:
        view = self.truth.views.get(int(view_id))
        if view is None:
            raise Refused(404)
        view["data"] = self.body["data"]
        return view


PROJECT = f"/api/projects/{PROJECT_ID}"
ROUTES: Sequence[tuple[str, str, Callable[..., Any]]] = (
    ("GET", PROJECT, Asked.project),
    ("PATCH", PROJECT, Asked.change_project),
    ("GET", "/api/projects", Asked.projects),
    ("GET", "/api/ml", Asked.backends),
    ("GET", "/api/tasks", Asked.list_tasks),
    ("GET", "/api/webhooks", Asked.webhooks),
    ("POST", "/api/webhooks", Asked.create_webhook),
    ("GET", f"{PROJECT}/model-versions", Asked.model_versions),
    ("DELETE", f"{PROJECT}/model-versions", Asked.delete_predictions),
    ("POST", f"{PROJECT}/import/predictions", Asked.import_predictions),
    ("GET", "/api/dm/columns", Asked.columns),
    ("GET", "/api/dm/views", Asked.views),
    ("POST", "/api/dm/views", Asked.create_view),
    ("PATCH", r"/api/dm/views/(\d+)", Asked.change_view),
)


def answer(method: str, path: str, asked: Asked) -> tuple[int, Any]:
    """Do what is asked, and return the status and content of the answer."""
    for known_method, pattern, handle in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and known_method == method:
            try:
                return 200, handle(asked, *match.groups())
            except Refused as refusal:
                return refusal.status, {"detail": "refused"}
    return 404, {"detail": f"no {method} {path} here"}
