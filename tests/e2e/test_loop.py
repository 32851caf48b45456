"""The whole promise on a real Label Studio: an annotator labels, and better suggestions appear by themselves.

One story, told in order: the tests of this module share a project and build on each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests

from backend.local_label_studio import LocalLabelStudio
from tests.e2e.loop import CLASS_NAMES, Annotator, Tandem, pushed, wait_for

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(900)]

N_TASKS = 36


@pytest.fixture(scope="module")
def annotator(label_studio: LocalLabelStudio) -> Annotator:
    user = Annotator(url=label_studio.url, token=label_studio.token)
    user.make_project()
    user.upload(0, N_TASKS)
    return user


def test_labels_made_before_connecting_are_learned(tandem: Tandem, annotator: Annotator) -> None:
    for task_id in list(annotator.truth)[:6]:
        annotator.label(task_id)

    body = {"project": annotator.project_id, "url": tandem.public_url, "title": "Tandem"}
    annotator.call("POST", "/api/ml", json=body)

    version = wait_for(lambda: pushed(tandem, annotator, 6), "a version that knows all six labels")
    project = tandem.project(annotator.project_id)
    assert project["class_names"] == list(CLASS_NAMES)
    assert (project["n_tasks"], project["n_labels"], project["n_embedded"]) == (N_TASKS, 6, N_TASKS)
    assert project["problems"] == []
    assert version.startswith(f"p{annotator.project_id}-v")


def test_the_webhook_carries_our_secret(tandem: Tandem, annotator: Annotator) -> None:
    webhooks = annotator.call("GET", "/api/webhooks/", params={"project": annotator.project_id})

    ours = [webhook for webhook in webhooks if webhook["url"] == f"{tandem.public_url}/webhook"]
    assert len(ours) == 1
    assert ours[0]["headers"]["X-Webhook-Secret"] == tandem.webhook_secret
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
    lowest = min(predictions[task]["score"] for task in annotator.unlabelled())

    task = annotator.next_task()

    shown = predictions[task["id"]]
    assert shown["score"] == lowest
    assert [prediction["id"] for prediction in task["predictions"]] == [shown["id"]]


def test_new_tasks_get_their_suggestion_too(tandem: Tandem, annotator: Annotator) -> None:
    annotator.upload(N_TASKS, N_TASKS + 3)

    wait_for(lambda: set(annotator.unlabelled()) <= set(annotator.predictions()), "suggestions for the new tasks")

    assert tandem.project(annotator.project_id)["n_tasks"] == N_TASKS + 3


def test_a_killed_worker_loses_nothing(tandem: Tandem, annotator: Annotator) -> None:
    before = len(annotator.truth) - len(annotator.unlabelled())
    workers = tandem.workers()
    assert len(workers) == 1
    annotator.label(annotator.unlabelled()[0])
    tandem.kill(workers[0])
    for task_id in annotator.unlabelled()[:3]:
        annotator.label(task_id)

    wait_for(lambda: pushed(tandem, annotator, before + 4), "a version that knows the labels made meanwhile")

    assert tandem.workers() != workers


def test_a_deleted_label_is_unlearned(tandem: Tandem, annotator: Annotator) -> None:
    n_labels = tandem.project(annotator.project_id)["n_labels"]
    annotation_id = annotator.label(annotator.unlabelled()[0])
    wait_for(lambda: pushed(tandem, annotator, n_labels + 1), "a version that knows one more label")

    annotator.delete(annotation_id)

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


def test_no_secret_is_in_any_log(tandem: Tandem, annotator: Annotator) -> None:
    """Label Studio's token comes with every /setup, the webhook's secret with every event; access tokens begin eyJ."""
    logs = tandem.logs()
    assert "version promoted" in logs
    assert not [secret for secret in (tandem.webhook_secret, annotator.token, "eyJ") if secret in logs]
