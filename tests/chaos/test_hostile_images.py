"""Images that crash, occupy or bloat what decodes them, among others in a whole Tandem: nobody else notices.

The decoders are those of the product; that an image has them crash for real, or hang, is injected (``injected``).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from backend.processes import runtime_folder
from tests.chaos.label_studio import LabelStudio, Truth
from tests.chaos.processes import Processes
from tests.chaos.storm import rows
from tests.e2e.loop import CLASS_NAMES, LABEL_CONFIG, picture, wait_for
from tests.hostile_images import endless_jpeg, telling

pytestmark = pytest.mark.slow

N_GOOD = 20
REASONS = {
    "crash": "its decoding crashes (SIGSEGV)",
    "abort": "its decoding crashes (SIGABRT)",
    "sleep": "its decoding takes more than 6 s",
    "endless": "its decoding takes more than 2 s of a processor",
    "hoard": "it cannot be decoded in the memory there is for one image",
    "be killed": "its decoding was killed: out of memory, or by somebody",
}
PREDICT_TIMEOUT_S = 30


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[LabelStudio, Processes]]:
    label_studio = LabelStudio(Truth(backend_url=""))
    # no reconciliation in between, which would have bad images tried again
    settings = {"MAX_IMAGE_PIXELS": "4000000", "SYNC_INTERVAL_S": "3600", "PREDICT_TIMEOUT_S": str(PREDICT_TIMEOUT_S)}
    tandem = Processes(tmp_path, tmp_path / "state", label_studio.url, **settings)
    tandem.let(processor_s=2.0, clock_s=6.0)
    label_studio.truth.backend_url = tandem.url
    label_studio.start()
    tandem.start()
    yield label_studio, tandem
    tandem.destroy()
    label_studio.die()
    shutil.rmtree(runtime_folder(tandem.model_dir), ignore_errors=True)


def hostile(order: str) -> bytes:
    return endless_jpeg(2000, 20_000) if order == "endless" else telling(picture("red", 1000), order)


def post(tandem: Processes, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(tandem.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json() if answer.content else {}


def test_they_cost_nobody_anything(both: tuple[LabelStudio, Processes]) -> None:
    label_studio, tandem = both
    truth = label_studio.truth
    wait_for(tandem.is_up, "the web server")
    # one at work, and one that waits to take its place
    embedders = wait_for(lambda: (found := tandem.find("embedder"))[1:] and found, "the embedders")
    planted = {}
    with truth.lock:
        for number in range(N_GOOD):
            name = CLASS_NAMES[number % 3]
            truth.add_task(f"{name}-{number}.png", picture(name, number))
            if number % 3 == 0 and len(planted) < len(REASONS):
                order = list(REASONS)[len(planted)]
                planted[truth.add_task(f"{order.replace(' ', '-')}.png", hostile(order))["id"]] = order
        tasks = dict(truth.tasks)
    post(tandem, "/webhook", {"action": "TASKS_CREATED", "tasks": list(tasks.values()), "project": truth.project()})

    def settled() -> bool:
        found = rows(tandem.model_dir, "SELECT backbone_digest, image_problem FROM task")
        return len(found) == len(tasks) and all(digest or problem for digest, problem in found)

    wait_for(settled, "every image has features or a reason")
    problems = dict(rows(tandem.model_dir, "SELECT id, image_problem FROM task WHERE image_problem IS NOT NULL"))
    assert problems == {task_id: REASONS[order] for task_id, order in planted.items()}
    assert tandem.find("embedder") == embedders, "none has died of any of them"

    good = [task_id for task_id in tasks if task_id not in planted]
    for task_id in good[:9]:
        with truth.lock:
            annotation = truth.annotate(task_id, str(tasks[task_id]["data"]["image"]).rsplit("/", 1)[1].split("-")[0])
            event = {"annotation": annotation, "task": tasks[task_id], "project": truth.project()}
        post(tandem, "/webhook", {"action": "ANNOTATION_CREATED", **event})
    wait_for(lambda: rows(tandem.model_dir, "SELECT name FROM version WHERE status = 'active'"), "a version")

    with truth.lock:
        unseen = truth.add_task("sleep-unseen.png", telling(picture("red", 1001), "sleep"))
    for asked in (list(tasks.values()), [unseen, tasks[good[-1]]], [tasks[good[-2]], unseen]):
        started_s = time.monotonic()
        answer = post(tandem, "/predict", {"tasks": asked, "project": truth.identity, "label_config": LABEL_CONFIG})
        assert time.monotonic() - started_s < PREDICT_TIMEOUT_S + 5
        suggested = [bool(entry.get("result")) for entry in answer["results"]]
        assert suggested == [task["id"] in good for task in asked]
    assert tandem.find("embedder") == embedders
    assert "process ended and is started again" not in tandem.log_file.read_text()
