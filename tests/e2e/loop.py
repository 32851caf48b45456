"""Both sides of the loop as tests see them: a running Tandem, and an annotator who uses Label Studio's API."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import requests
from PIL import Image

CLASS_NAMES = ("red", "green", "blue")
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="colour" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in CLASS_NAMES)
    + "</Choices></View>"
)
T = TypeVar("T")


def wait_for(question: Callable[[], T | None], what: str, timeout_s: float = 120.0) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = question()
        if answer:
            return answer
        time.sleep(0.3)
    pytest.fail(f"not within {timeout_s:.0f} s: {what}")


def picture(class_name: str, number: int) -> bytes:
    """A noisy picture in which one colour prevails, more or less clearly."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 160, (64, 64, 3))
    pixels[..., CLASS_NAMES.index(class_name)] += random.integers(40, 95)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def region(class_name: str) -> dict[str, Any]:
    """A label as Label Studio stores it."""
    return {"from_name": "colour", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}


@dataclass
class Tandem:
    """A running Tandem; Label Studio reaches it at `public_url`."""

    url: str
    public_url: str
    webhook_secret: str

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def project(self, project_id: int) -> dict[str, Any]:
        return self.get(f"/api/projects/{project_id}")

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        raise NotImplementedError

    def kill(self, process_id: int) -> None:
        """Let a worker end without a chance to do anything more."""
        raise NotImplementedError

    def logs(self) -> str:
        """What all processes have logged so far."""
        raise NotImplementedError


@dataclass
class LocalTandem(Tandem):
    """`tandem serve` on this machine."""

    process: subprocess.Popen[bytes]
    log_file: Path

    def workers(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"worker\0--no-embedder" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def kill(self, process_id: int) -> None:
        os.kill(process_id, signal.SIGKILL)

    def logs(self) -> str:
        return self.log_file.read_text()


@dataclass
class Annotator:
    """A user of Label Studio's API who knows the truth; `truth` is the class of each task."""

    url: str
    token: str
    project_id: int = 0
    truth: dict[int, str] = field(default_factory=dict)

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        headers = {"Authorization": f"Token {self.token}"}
        answer = requests.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def make_project(self, sampling: str = "Uncertainty sampling") -> None:
        body = {"title": "Colours", "label_config": LABEL_CONFIG, "sampling": sampling}
        self.project_id = self.call("POST", "/api/projects/", json=body)["id"]

    def upload(self, first: int, last: int) -> None:
        files = []
        for number in range(first, last):
            name = f"{CLASS_NAMES[number % 3]}-{number}.png"
            files.append((name, (name, picture(CLASS_NAMES[number % 3], number), "image/png")))
        self.call("POST", f"/api/projects/{self.project_id}/import", files=files)
        for task in self.tasks():
            self.truth[task["id"]] = task["data"]["image"].rsplit("/", 1)[-1].split("-")[1]

    def tasks(self) -> list[dict[str, Any]]:
        query = {"project": self.project_id, "page_size": 200, "fields": "all"}
        return self.call("GET", "/api/tasks", params=query)["tasks"]

    def content(self, task: dict[str, Any]) -> bytes:
        """The image of a task."""
        headers = {"Authorization": f"Token {self.token}"}
        answer = requests.get(self.url + task["data"]["image"], headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.content

    def label(self, task_id: int, class_name: str | None = None) -> int:
        result = [region(class_name or self.truth[task_id])]
        return self.call("POST", f"/api/tasks/{task_id}/annotations/", json={"result": result})["id"]

    def skip(self, task_id: int) -> int:
        skipped = {"result": [], "was_cancelled": True}
        return self.call("POST", f"/api/tasks/{task_id}/annotations/", json=skipped)["id"]

    def change(self, annotation_id: int, class_name: str) -> None:
        self.call("PATCH", f"/api/annotations/{annotation_id}/", json={"result": [region(class_name)]})

    def delete(self, annotation_id: int) -> None:
        self.call("DELETE", f"/api/annotations/{annotation_id}/")

    def next_task(self) -> dict[str, Any]:
        return self.call("GET", f"/api/projects/{self.project_id}/next")

    def stored_predictions(self) -> list[dict[str, Any]]:
        return self.call("GET", "/api/predictions/", params={"project": self.project_id})

    def predictions(self) -> dict[int, dict[str, Any]]:
        """The stored predictions by task; a task with two of them is a failure."""
        stored = self.stored_predictions()
        by_task = {prediction["task"]: prediction for prediction in stored}
        assert len(by_task) == len(stored)
        return by_task

    def model_version(self) -> str | None:
        return self.call("GET", f"/api/projects/{self.project_id}/")["model_version"]

    def unlabelled(self) -> list[int]:
        return [task["id"] for task in self.tasks() if not task["is_labeled"]]


def is_healthy(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/health", timeout=1).ok
    return False


def pushed(tandem: Tandem, annotator: Annotator, n_labels: int) -> str | None:
    """The active version, once it knows so many labels and its suggestions are what the annotator sees."""
    project = tandem.project(annotator.project_id)
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    active = next((version for version in versions if version["status"] == "active"), None)
    if not active or active["n_labels"] != n_labels or project["jobs"]["queued"] or project["jobs"]["running"]:
        return None
    return active["version"] if annotator.model_version() == active["version"] else None
