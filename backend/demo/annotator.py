"""The simulated annotator: does through Label Studio's API what a person does in its pages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import requests

from backend.demo.digits import DigitPicture
from backend.errors import TandemError

REQUEST_TIMEOUT_S = 120.0
CONNECT_ATTEMPTS = 5
PICTURES_PER_UPLOAD = 50


class DemoFailed(TandemError):
    """The demo cannot go on; the message says at which step, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSuggestion:
    """A prediction as Label Studio stores it; ``score`` is Tandem's confidence in it, 0 to 1."""

    task_id: int
    class_name: str
    score: float


def choices_config(class_names: Iterable[str]) -> str:
    """Return the label config of a classification project."""
    choices = "".join(f"<Choice value={quoteattr(name)}/>" for name in class_names)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="digit" toName="image" choice="single" showInLine="true">{choices}</Choices></View>'
    )


class Annotator:
    """Somebody with a Label Studio account; ``project_id`` is the project that ``make_project`` made."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Token {token}"
        self.project_id = 0

    def make_project(self, title: str, class_names: Sequence[str]) -> None:
        """Make the project, its tasks ordered by uncertainty."""
        body = {
            "title": title,
            "description": "Made by Tandem's demo.",
            "label_config": choices_config(class_names),
            "sampling": "Uncertainty sampling",
            "show_collab_predictions": True,
        }
        self.project_id = int(self._call("POST", "/api/projects/", json=body)["id"])

    def upload(self, pictures: Sequence[DigitPicture], report: Callable[[int], None]) -> dict[int, str]:
        """Upload pictures, each to be a task; return the true class of each task."""
        for start in range(0, len(pictures), PICTURES_PER_UPLOAD):
            files = [
                (picture.file_name, (picture.file_name, picture.png, "image/png"))
                for picture in pictures[start : start + PICTURES_PER_UPLOAD]
            ]
            self._call("POST", f"/api/projects/{self.project_id}/import", files=files)
            report(min(start + PICTURES_PER_UPLOAD, len(pictures)))
        class_of_file = {picture.file_name: picture.class_name for picture in pictures}
        return {
            # Label Studio puts a random prefix and a hyphen before the name of an uploaded file.
            task["id"]: class_of_file[task["data"]["image"].rsplit("/", 1)[-1].partition("-")[2]]
            for task in self._tasks(len(pictures))
        }

    def connect(self, backend_url: str) -> None:
        """Connect an ML backend to the project; a busy machine may need more than one try."""
        body = {"project": self.project_id, "url": backend_url, "title": "Tandem"}
        for attempt in range(1, CONNECT_ATTEMPTS + 1):
            try:
                self._call("POST", "/api/ml", json=body)
                return
            except DemoFailed:
                if attempt == CONNECT_ATTEMPTS:
                    raise
                time.sleep(attempt)

    def next_task(self) -> int:
        """Return the task that Label Studio wants labelled next."""
        return int(self._call("GET", f"/api/projects/{self.project_id}/next")["id"])

    def label(self, task_id: int, class_name: str) -> None:
        """Submit the label of a task."""
        region = {"from_name": "digit", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}
        self._call("POST", f"/api/tasks/{task_id}/annotations/", json={"result": [region], "lead_time": 1.0})

    def suggestions(self, version: str) -> dict[int, StoredSuggestion]:
        """Return the stored suggestions of a model version, by task."""
        stored = self._call("GET", "/api/predictions/", params={"project": str(self.project_id)})
        return {
            prediction["task"]: StoredSuggestion(
                task_id=prediction["task"],
                class_name=prediction["result"][0]["value"]["choices"][0],
                score=float(prediction["score"]),
            )
            for prediction in stored
            if prediction["model_version"] == version and prediction["result"]
        }

    def _tasks(self, count: int) -> list[dict[str, Any]]:
        query = {"project": str(self.project_id), "page_size": str(count), "fields": "task_only"}
        tasks: list[dict[str, Any]] = self._call("GET", "/api/tasks", params=query)["tasks"]
        if len(tasks) != count:
            raise DemoFailed(f"{count} pictures were uploaded, but Label Studio shows {len(tasks)} tasks")
        return tasks

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._session.request(method, self._url + path, timeout=REQUEST_TIMEOUT_S, **arguments)
        except requests.RequestException as error:
            raise DemoFailed(f"Label Studio did not answer {method} {path}: {error}") from error
        if not answer.ok:
            raise DemoFailed(f"Label Studio refused {method} {path}: {answer.status_code} {answer.text[:500]}")
        try:
            return answer.json()
        except json.JSONDecodeError as error:
            raise DemoFailed(f"Label Studio's answer to {method} {path} is no JSON: {answer.text[:200]}") from error
