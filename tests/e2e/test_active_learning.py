"""Active learning on a real Label Studio: the chosen tasks reach the annotator, in the chosen order.

One story, told in order: the tests of this module share a project and build on each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.local_label_studio import LocalLabelStudio
from tests.e2e.loop import CLASS_NAMES, Annotator, Tandem, wait_for

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(900)]

N_TASKS = 48
BATCH_SIZE = 6
N_MORE = 18
CHROMIUM = next((path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/google-chrome")) if path.exists()), None)
CHROMIUM_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PAGE_TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"QUERY_BATCH_SIZE": str(BATCH_SIZE)}


@pytest.fixture(scope="module")
def annotator(label_studio: LocalLabelStudio, tandem: Tandem) -> Annotator:
    user = Annotator(url=label_studio.url, token=label_studio.token)
    user.make_project(sampling="Sequential sampling")
    user.upload(0, N_TASKS)
    user.call("POST", "/api/ml", json={"project": user.project_id, "url": tandem.url, "title": "Tandem"})
    return user


def view_of(annotator: Annotator, title: str) -> dict[str, Any] | None:
    views = annotator.call("GET", "/api/dm/views/", params={"project": annotator.project_id})
    return next((view for view in views if view["data"]["title"] == title), None)


def shown(annotator: Annotator, title: str) -> list[int]:
    """The tasks of a view, from top to bottom."""
    view = view_of(annotator, title)
    if view is None:
        return []
    query = {"project": annotator.project_id, "view": view["id"], "page_size": 200}
    return [task["id"] for task in annotator.call("GET", "/api/tasks", params=query)["tasks"]]


def served(annotator: Annotator, title: str) -> int:
    """The task that "Label Tasks As Displayed" opens in a view."""
    view = view_of(annotator, title)
    assert view
    query = {"id": "next_task", "tabID": view["id"], "project": annotator.project_id}
    body = {"filters": view["data"]["filters"], "ordering": view["data"]["ordering"], "project": annotator.project_id}
    return annotator.call("POST", "/api/dm/actions", params=query, json=body)["id"]


def settled(tandem: Tandem, annotator: Annotator, n_labels: int) -> list[int]:
    """The chosen tasks, once Tandem has learned and shown all that follows from so many labels."""
    project = tandem.project(annotator.project_id)
    versions = tandem.get(f"/api/projects/{annotator.project_id}/versions")
    learned = max((version["n_labels"] for version in versions), default=0)
    if learned != n_labels or project["jobs"]["queued"] or project["jobs"]["running"]:
        return []
    return shown(annotator, "Label next")


def test_before_the_first_label_typical_tasks_of_every_kind_are_chosen(tandem: Tandem, annotator: Annotator) -> None:
    chosen = wait_for(lambda: settled(tandem, annotator, 0), "the first tasks to label")

    assert len(chosen) == BATCH_SIZE
    assert {annotator.truth[task] for task in chosen} == set(CLASS_NAMES)


def test_an_annotator_is_served_the_chosen_tasks_in_the_chosen_order(tandem: Tandem, annotator: Annotator) -> None:
    for task in list(shown(annotator, "Label next")):
        annotator.label(task)
    chosen = wait_for(lambda: settled(tandem, annotator, BATCH_SIZE), "what to label after the first batch")

    assert not set(chosen) - set(annotator.unlabelled())
    scores = {task: prediction["score"] for task, prediction in annotator.predictions().items()}
    assert [scores[task] for task in chosen] == sorted(scores[task] for task in chosen)
    walked = []
    for _ in chosen:
        task = served(annotator, "Label next")
        walked.append(task)
        annotator.skip(task)
    assert walked == chosen


def test_sampling_was_nobodys_choice_and_is_by_uncertainty_now(annotator: Annotator) -> None:
    assert annotator.call("GET", f"/api/projects/{annotator.project_id}/")["sampling"] == "Uncertainty sampling"


def test_a_wrong_label_is_shown_for_checking(tandem: Tandem, annotator: Annotator) -> None:
    planted, *others = sorted(annotator.unlabelled())[:N_MORE]
    annotator.label(planted, "red" if annotator.truth[planted] != "red" else "blue")
    for task in others:
        annotator.label(task)

    wait_for(lambda: settled(tandem, annotator, BATCH_SIZE + N_MORE), "a version that knows the wrong label")

    suspects = tandem.get(f"/api/projects/{annotator.project_id}/suspects")["suspects"]
    assert suspects[0]["task"] == planted
    assert suspects[0]["suggested"] == [annotator.truth[planted]]
    assert planted in wait_for(lambda: shown(annotator, "Check these labels"), "the labels to check")
    instead = wait_for(lambda: annotator.predictions().get(planted), "what the wrong label should be")
    assert instead["result"][0]["value"]["choices"] == [annotator.truth[planted]]


@pytest.fixture
def page(label_studio: LocalLabelStudio) -> Iterator[Any]:
    """The Data Manager in a headless Chromium, the annotator logged in."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: on Debian, apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS))
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        page.goto(f"{label_studio.url}/user/login/")
        page.fill("input[name=email]", label_studio.username)
        page.fill("input[name=password]", label_studio.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url)
        yield page
        browser.close()


def opened(page: Any) -> int | None:
    """The task that the page shows."""
    for text in page.locator(".lsf-current-task__task-id").all_inner_texts():
        return int(text.split()[0])
    return None


def test_in_the_page_too(tandem: Tandem, annotator: Annotator, page: Any) -> None:
    n_labels = BATCH_SIZE + N_MORE
    first, second, *_ = wait_for(lambda: settled(tandem, annotator, n_labels), "what to label next")
    suggested = annotator.predictions()[first]["result"][0]["value"]["choices"]
    view = view_of(annotator, "Label next")
    assert view

    page.goto(f"{annotator.url}/projects/{annotator.project_id}/data?tab={view['id']}")
    # the arrow beside "Label All Tasks", which itself would not care for the view
    page.locator('button:has-text("Label All Tasks") + button').click()
    page.get_by_text("Label Tasks As Displayed").click()
    wait_for(lambda: opened(page) == first, "the page of the first task")
    assert [name for name in CLASS_NAMES if page.locator(f"input[name={name}]").is_checked()] == suggested
    page.locator(f"input[name={annotator.truth[first]}]").check()
    page.locator("button[name=submit]").click()
    wait_for(lambda: opened(page) not in (None, first), "the page of the next task")

    assert opened(page) in {second, *shown(annotator, "Label next")}
    wait_for(lambda: settled(tandem, annotator, n_labels + 1), "a version that knows the label given in the page")
    assert first not in annotator.unlabelled()
