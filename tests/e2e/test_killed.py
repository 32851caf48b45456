"""Nothing acknowledged is lost on a real Label Studio, while it and every process of Tandem are killed.

    pytest tests/e2e/test_killed.py --chaos-seed 7

A seed draws what the annotator does and who dies next; when exactly a process is hit is up to the machine. Label Studio
tells of each annotation once: what a dead Tandem did not hear has to come in by reconciliation.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from backend.background_process import BackgroundProcess, free_port
from backend.local_label_studio import LocalLabelStudio
from backend.processes import runtime_folder
from tests.chaos.label_studio import Truth
from tests.chaos.processes import SUPERVISORS, VICTIMS, Processes
from tests.chaos.storm import rows
from tests.chaos.verdict import check_answers, check_rest, end_state, wait_for_rest
from tests.conftest import CACHE_DIR
from tests.e2e.composition import Composition
from tests.e2e.loop import CLASS_NAMES, Annotator, T, wait_for

pytestmark = [pytest.mark.label_studio, pytest.mark.slow, pytest.mark.timeout(900)]

N_TASKS = 30
N_FIRST_LABELS = 9
FEWEST_LABELS = 8
FEWEST_OPEN_TASKS = 8
ACTIONS_PER_S = 2.0
LABEL_STUDIO = "Label Studio"
# decoders come with the first image and, once killed, with the next: there is none to wait for
DEATHS = [*(each for each in VICTIMS if each != "decoder"), *SUPERVISORS] * 3 + [LABEL_STUDIO]


@dataclass
class PatientAnnotator(Annotator):
    """Does again what was not acknowledged, and remembers what was: task and class, or none, of each annotation."""

    acknowledged: dict[int, tuple[int, str | None]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def work(self, chance: random.Random, over: threading.Event) -> None:
        """Label, change, delete and skip until it is over."""
        while not over.wait(chance.expovariate(ACTIONS_PER_S)):
            self.act(chance)

    def act(self, chance: random.Random) -> None:
        """Do one thing."""
        labels = sorted(key for key, (_, class_name) in self.acknowledged.items() if class_name)
        open_tasks = sorted(self.truth.keys() - {task_id for task_id, _ in self.acknowledged.values()})
        kind = chance.choices(("label", "change", "delete", "skip"), (5, 3, 2, 1))[0]
        if len(labels) < FEWEST_LABELS:
            kind = "label"
        elif len(open_tasks) < FEWEST_OPEN_TASKS:
            kind = "delete"
        if kind == "label":
            task_id = chance.choice(open_tasks)
            class_name = self.truth[task_id] if chance.random() < 0.9 else chance.choice(CLASS_NAMES)
            made = self.persist(lambda: self.submit(task_id, lambda: self.label(task_id, class_name)))
            self.acknowledged[made] = task_id, class_name
        elif kind == "skip":
            task_id = chance.choice(open_tasks)
            made = self.persist(lambda: self.submit(task_id, lambda: self.skip(task_id)))
            self.acknowledged[made] = task_id, None
        elif kind == "change":
            changed, class_name = chance.choice(labels), chance.choice(CLASS_NAMES)
            self.persist(lambda: self.change(changed, class_name))
            self.acknowledged[changed] = self.acknowledged[changed][0], class_name
        else:
            deleted = chance.choice(sorted(self.acknowledged))
            self.persist(lambda: self.withdraw(deleted))
            del self.acknowledged[deleted]
        self.counts[kind] += 1

    def persist(self, act: Callable[[], T]) -> T:
        """Do it until Label Studio acknowledges it."""

        def attempt() -> tuple[T] | None:
            with contextlib.suppress(requests.RequestException):
                return (act(),)
            self.counts["tried in vain"] += 1
            return None

        return wait_for(attempt, "Label Studio acknowledges what an annotator does")[0]

    def submit(self, task_id: int, send: Callable[[], int]) -> int:
        """Annotate an open task, unless that was done and only the answer got lost."""
        stored = self.stored(task_id)
        return stored[0] if stored else send()

    def withdraw(self, annotation_id: int) -> None:
        """Delete an annotation, unless that was done and only the answer got lost."""
        task_id, _ = self.acknowledged[annotation_id]
        if annotation_id in self.stored(task_id):
            self.delete(annotation_id)

    def stored(self, task_id: int) -> list[int]:
        """The annotations of a task; Label Studio's own list of them leaves out skips."""
        (task,) = (task for task in self.tasks() if task["id"] == task_id)
        return [annotation["id"] for annotation in task["annotations"]]


@dataclass
class MortalLabelStudio:
    """A real Label Studio with one project, which can be killed and comes back where it was."""

    server: LocalLabelStudio
    annotator: PatientAnnotator

    @property
    def truth(self) -> Truth:
        """All that it knows; asked for in several requests, so nobody may be at work."""
        project = self.annotator.call("GET", f"/api/projects/{self.annotator.project_id}/")
        tasks = {task["id"]: task for task in self.annotator.tasks()}
        return Truth(
            backend_url="",
            created_at=project["created_at"],
            model_version=project["model_version"],
            tasks=tasks,
            annotations={
                each["id"]: {**each, "task": task_id} for task_id, task in tasks.items() for each in task["annotations"]
            },
            predictions=self.annotator.stored_predictions(),
        )

    def kill(self) -> None:
        """Let it and all that it started end at once."""
        process = BackgroundProcess(folder=self.server.data_dir, name="label-studio")
        os.killpg(int(process.pid_file.read_text()), signal.SIGKILL)
        wait_for(lambda: not process.is_running, "the end of Label Studio")

    def start_again(self) -> None:
        """Come back with all that was stored."""
        self.server.start()
        assert self.server.url == self.annotator.url


@pytest.fixture
def label_studio(tmp_path: Path, composition: Composition | None) -> Iterator[MortalLabelStudio]:
    """One of its own, which nobody else misses when it is killed."""
    if composition:
        pytest.skip("what runs in containers is not killed")
    with LocalLabelStudio(tmp_path / "label-studio", cache_dir=CACHE_DIR, preferred_port=free_port()) as server:
        annotator = PatientAnnotator(url=server.url, token=server.token)
        annotator.make_project()
        annotator.upload(0, N_TASKS)
        yield MortalLabelStudio(server, annotator)


@pytest.fixture
def tandem(tmp_path: Path, label_studio: MortalLabelStudio) -> Iterator[Processes]:
    key = label_studio.server.personal_access_token()
    started = Processes(tmp_path, tmp_path / "state", label_studio.annotator.url, LABEL_STUDIO_API_KEY=key)
    started.start()
    yield started
    started.destroy()
    sys.stderr.write(started.log_file.read_text()[-20_000:])
    shutil.rmtree(runtime_folder(started.model_dir), ignore_errors=True)


def kill_one_after_the_other(label_studio: MortalLabelStudio, tandem: Processes, chance: random.Random) -> None:
    """Kill every kind of process three times, and Label Studio once, in any order; who died has to come back."""
    for victim in chance.sample(DEATHS, len(DEATHS)):
        if victim == LABEL_STUDIO:
            label_studio.kill()
            time.sleep(chance.uniform(0.2, 3.0))
            label_studio.start_again()
        else:
            wait_for(lambda victim=victim: tandem.kill(victim, chance.random()), f"a {victim} to kill")
        tandem.start()
        time.sleep(chance.uniform(0.5, 2.0))


def test_whoever_is_killed_nothing_acknowledged_is_lost(
    label_studio: MortalLabelStudio, tandem: Processes, seed: int
) -> None:
    sys.stdout.write(f"--chaos-seed {seed}\n")
    annotator = label_studio.annotator
    wait_for(tandem.is_up, "the web server")
    annotator.call("POST", "/api/ml", json={"project": annotator.project_id, "url": tandem.url, "title": "Tandem"})
    chance = random.Random(seed)
    for _ in range(N_FIRST_LABELS):
        annotator.act(chance)
    wait_for_rest(label_studio, tandem)

    started_s = time.monotonic()
    over = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as desk:
        at_work = desk.submit(annotator.work, chance, over)
        try:
            kill_one_after_the_other(label_studio, tandem, random.Random(seed + 1))
        finally:
            over.set()
        at_work.result()
    stormed_s = time.monotonic() - started_s
    wait_for_rest(label_studio, tandem)
    brought_in = rows(tandem.model_dir, "SELECT sum(reason) FROM job WHERE kind = 'sync' AND reason LIKE '% changes%'")
    sys.stdout.write(
        f"{len(DEATHS)} kills in {stormed_s:.0f} s, at rest after {time.monotonic() - started_s - stormed_s:.0f} s; "
        f"{dict(annotator.counts)}; {brought_in[0][0]} changes brought in by reconciliation\n"
    )

    truth = label_studio.truth
    assert {key: (task_id, name) for key, (task_id, name, _) in truth.labels().items()} == annotator.acknowledged
    check_answers(truth, tandem, end_state(truth, tandem))
    assert tandem.stop() == [0, 0]
    wait_for(lambda: not tandem.alive(), "the end of every process, also of those that a supervisor left")
    check_rest(tandem)
