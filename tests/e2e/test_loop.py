"""The whole promise on a real Label Studio: an annotator labels, and better suggestions appear by themselves.

One story, told in order: the tests of this module share a project and build on each other.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import requests
from PIL import Image

from backend.background_process import free_port
from backend.local_label_studio import LocalLabelStudio

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(900)]

CLASS_NAMES = ("red", "green", "blue")
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="colour" toName="image">'
    + "".join(f'<Choice value="{name}"/>' for name in CLASS_NAMES)
    + "</Choices></View>"
)
N_TASKS = 36

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


@dataclass
class Tandem:
    """A running `tandem serve`."""

    url: str
    model_dir: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def project(self, project_id: int) -> dict[str, Any]:
        return self.get(f"/api/projects/{project_id}")

    def children(self, word: str) -> list[int]:
        """Ids of the processes below this one whose command line holds a word."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if parent == self.process.pid and word in line:
                    found.append(int(folder.name))
        return found


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

    def make_project(self) -> None:
        body = {"title": "Colours", "label_config": LABEL_CONFIG, "sampling": "Uncertainty sampling"}
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

    def label(self, task_id: int, class_name: str | None = None) -> int:
        value = {"choices": [class_name or self.truth[task_id]]}
        region = {"from_name": "colour", "to_name": "image", "type": "choices", "value": value}
        return self.call("POST", f"/api/tasks/{task_id}/annotations/", json={"result": [region]})["id"]

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


@pytest.fixture(scope="module")
def tandem(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tandem]:
    model_dir = tmp_path_factory.mktemp("tandem")
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {  # noqa: TID251 - handed on to a child
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token(),
        "PUBLIC_URL": url,
        "HOST": "127.0.0.1",
        "PORT": url.rsplit(":", 1)[1],
        "MODEL_DIR": str(model_dir),
        "BACKBONE": "shufflenet_v2_x0_5",
        "WEIGHTS": "none",
        "WEBHOOK_SECRET": "a secret of the tests",
        "TRAIN_QUIET_S": "0.5",
        "TRAIN_MAX_WAIT_S": "3",
    }
    log = (model_dir / "tandem.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "backend", "serve"], env=environment, stderr=log)
    running = Tandem(url=url, model_dir=model_dir, process=process)
    with log, process:
        try:
            wait_for(lambda: is_healthy(url), "Tandem's web server is up")
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            sys.stderr.write((model_dir / "tandem.log").read_text()[-20_000:])


def is_healthy(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/health", timeout=1).ok
    return False


@pytest.fixture(scope="module")
def annotator(label_studio: LocalLabelStudio) -> Annotator:
    user = Annotator(url=label_studio.url, token=label_studio.token)
    user.make_project()
    user.upload(0, N_TASKS)
    return user


def pushed(tandem: Tandem, annotator: Annotator, n_labels: int) -> str | None:
    """The active version, once it knows so many labels and its suggestions are what the annotator sees."""
    project = tandem.project(annotator.project_id)
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    active = next((version for version in versions if version["status"] == "active"), None)
    if not active or active["n_labels"] != n_labels or project["jobs"]["queued"] or project["jobs"]["running"]:
        return None
    return active["version"] if annotator.model_version() == active["version"] else None


def test_labels_made_before_connecting_are_learned(tandem: Tandem, annotator: Annotator) -> None:
    for task_id in list(annotator.truth)[:6]:
        annotator.label(task_id)

    body = {"project": annotator.project_id, "url": tandem.url, "title": "Tandem"}
    annotator.call("POST", "/api/ml", json=body)

    version = wait_for(lambda: pushed(tandem, annotator, 6), "a version that knows all six labels")
    project = tandem.project(annotator.project_id)
    assert project["class_names"] == list(CLASS_NAMES)
    assert (project["n_tasks"], project["n_labels"], project["n_embedded"]) == (N_TASKS, 6, N_TASKS)
    assert project["problems"] == []
    assert version.startswith(f"p{annotator.project_id}-v")


def test_the_webhook_carries_our_secret(tandem: Tandem, annotator: Annotator) -> None:
    webhooks = annotator.call("GET", "/api/webhooks/", params={"project": annotator.project_id})

    ours = [webhook for webhook in webhooks if webhook["url"] == f"{tandem.url}/webhook"]
    assert len(ours) == 1
    assert ours[0]["headers"]["X-Webhook-Secret"] == "a secret of the tests"
    assert requests.post(f"{tandem.url}/webhook", json={"action": "START_TRAINING"}, timeout=10).status_code == 401


def test_every_unlabelled_task_has_a_suggestion_of_the_newest_version(tandem: Tandem, annotator: Annotator) -> None:
    before = tandem.project(annotator.project_id)["active_version"]
    for task_id in annotator.unlabelled()[:9]:
        annotator.label(task_id)

    version = wait_for(lambda: pushed(tandem, annotator, 15), "a version that knows fifteen labels")

    assert version != before
    predictions = annotator.predictions()
    assert {prediction["model_version"] for prediction in predictions.values()} == {version}
    assert set(annotator.unlabelled()) <= set(predictions)
    assert all(0.0 <= prediction["score"] <= 1.0 for prediction in predictions.values())
    right = [predictions[task]["result"][0]["value"]["choices"] == [annotator.truth[task]] for task in predictions]
    assert np.mean(right) >= 0.8


def test_the_least_sure_task_comes_first_with_its_suggestion(annotator: Annotator) -> None:
    predictions = annotator.predictions()
    least_sure = min(annotator.unlabelled(), key=lambda task: predictions[task]["score"])

    task = annotator.next_task()

    assert task["id"] == least_sure
    assert [prediction["id"] for prediction in task["predictions"]] == [predictions[least_sure]["id"]]


def test_new_tasks_get_their_suggestion_too(tandem: Tandem, annotator: Annotator) -> None:
    annotator.upload(N_TASKS, N_TASKS + 3)

    wait_for(lambda: set(annotator.unlabelled()) <= set(annotator.predictions()), "suggestions for the new tasks")

    assert tandem.project(annotator.project_id)["n_tasks"] == N_TASKS + 3


def test_a_killed_worker_loses_nothing(tandem: Tandem, annotator: Annotator) -> None:
    before = len(annotator.truth) - len(annotator.unlabelled())
    workers = tandem.children(" worker ")
    assert len(workers) == 1
    annotator.label(annotator.unlabelled()[0])
    os.kill(workers[0], signal.SIGKILL)
    for task_id in annotator.unlabelled()[:3]:
        annotator.label(task_id)

    wait_for(lambda: pushed(tandem, annotator, before + 4), "a version that knows the labels made meanwhile")

    assert tandem.children(" worker ") != workers


def test_a_deleted_label_is_unlearned(tandem: Tandem, annotator: Annotator) -> None:
    n_labels = tandem.project(annotator.project_id)["n_labels"]
    annotation_id = annotator.label(annotator.unlabelled()[0])
    wait_for(lambda: pushed(tandem, annotator, n_labels + 1), "a version that knows one more label")

    annotator.call("DELETE", f"/api/annotations/{annotation_id}/")

    version = wait_for(lambda: pushed(tandem, annotator, n_labels), "a version without the deleted label")
    active = tandem.get(f"/api/projects/{annotator.project_id}/versions")[0]
    assert active["version"] == version
    assert "withdrawn" in active["reason"]


def test_an_earlier_version_can_be_brought_back(tandem: Tandem, annotator: Annotator) -> None:
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    earlier = next(version for version in versions if version["status"] == "retired")["version"]

    answer = requests.post(
        f"{tandem.url}/api/projects/{annotator.project_id}/rollback", json={"version": earlier}, timeout=10
    )

    assert answer.json()["status"] == "active"
    wait_for(lambda: annotator.model_version() == earlier, "the earlier version's suggestions are back")
    wait_for(
        lambda: {each["model_version"] for each in annotator.stored_predictions()} == {earlier},
        "the suggestions of other versions are gone",
    )


def test_a_network_is_fine_tuned_and_judged(tandem: Tandem, annotator: Annotator) -> None:
    url = f"{tandem.url}/api/projects/{annotator.project_id}"
    answer = requests.post(f"{url}/train", json={"kind": "finetune"}, timeout=10)
    assert answer.status_code == 202
    job_id = answer.json()["id"]

    def finished() -> dict[str, Any] | None:
        jobs = requests.get(f"{url}/jobs", timeout=10).json()
        return next((job for job in jobs if job["id"] == job_id and job["finished_at"]), None)

    job = wait_for(finished, "the end of the fine-tuning", timeout_s=400)

    assert job["status"] == "succeeded", job["reason"]
    newest = requests.get(f"{url}/versions", timeout=10).json()[0]
    assert newest["kind"] == "finetune"
    assert newest["status"] in ("active", "rejected")
    assert newest["version"] in job["reason"]
