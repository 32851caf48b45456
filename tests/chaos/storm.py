"""Annotators at work while everything breaks, all drawn from one seed; and what must be true in the end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests

from tests.chaos.label_studio import LabelStudio
from tests.chaos.processes import Processes
from tests.e2e.loop import CLASS_NAMES, LABEL_CONFIG, picture

LARGEST_OFFSET_S = 7200.0
KILL_WEIGHTS = {
    "web": 8.0,
    "child": 8.0,
    "worker": 3.0,
    "web master": 1.0,
    "embedder": 1.0,
    "decoder": 2.0,
    "web supervisor": 0.5,
    "worker supervisor": 0.5,
}
Json = dict[str, Any]


class Lost(AssertionError):
    """Something that was acknowledged is not there."""


@dataclass
class Annotators:
    """Label, relabel, skip and delete, upload and remove, and ask for suggestions.

    Label Studio's events come twice, late, and out of order.
    """

    label_studio: LabelStudio
    tandem: Processes
    random: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    acknowledged: dict[int, str] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    late: list[tuple[float, Json]] = field(default_factory=list)
    n_uploaded: int = 0

    def upload(self, n_tasks: int) -> None:
        """Upload pictures."""
        truth = self.label_studio.truth
        with truth.lock:
            tasks = []
            for _ in range(n_tasks):
                self.n_uploaded += 1
                name = f"{CLASS_NAMES[self.n_uploaded % 3]}-{self.n_uploaded}.png"
                tasks.append(truth.add_task(name, picture(CLASS_NAMES[self.n_uploaded % 3], self.n_uploaded)))
            event = {"action": "TASKS_CREATED", "tasks": tasks, "project": truth.project()}
        self.send(event)

    def act(self) -> None:
        """Do one thing."""
        truth = self.label_studio.truth
        with truth.lock:
            unlabelled, annotations = sorted(truth.unlabelled()), sorted(truth.annotations)
        kinds = {"label": 6.0, "relabel": 2.0, "skip": 0.5, "delete": 0.7, "upload": 0.4, "remove": 0.2, "predict": 3.0}
        kind = self.random.choices(list(kinds), list(kinds.values()))[0]
        if kind == "upload" or len(unlabelled) < 12:
            self.upload(self.random.randint(1, 4))
        elif kind in ("label", "skip"):
            self.label(self.random.choice(unlabelled), skip=kind == "skip")
        elif kind == "predict":
            self.ask(self.random.sample(unlabelled, 3))
        elif kind == "remove":
            self.remove(self.random.choice(unlabelled))
        elif annotations and kind == "relabel":
            self.relabel(self.random.choice(annotations))
        elif annotations and kind == "delete":
            self.delete(self.random.choice(annotations))
        self.counts[f"act: {kind}"] += 1
        self.send_late()

    def right_class(self, task_id: int) -> str:
        """Return what is to be seen."""
        return str(self.label_studio.truth.tasks[task_id]["data"]["image"]).rsplit("/", 1)[-1].split("-")[0]

    def label(self, task_id: int, *, skip: bool = False, annotation_id: int | None = None) -> None:
        """Submit an annotation, mostly the right one."""
        truth = self.label_studio.truth
        with truth.lock:
            wrong = self.random.random() < 0.05
            class_name = self.random.choice(CLASS_NAMES) if wrong else self.right_class(task_id)
            event = self._annotated(task_id, None if skip else class_name, annotation_id)
        self.send(event)

    def change(self, annotation_id: int, task_id: int, class_name: str | None) -> None:
        """Change an annotation to a class, and tell of it once."""
        self.deliver(self._annotated(task_id, class_name, annotation_id))

    def _annotated(self, task_id: int, class_name: str | None, annotation_id: int | None) -> Json:
        truth = self.label_studio.truth
        with truth.lock:
            annotation = truth.annotate(task_id, class_name, annotation_id)
            action = "ANNOTATION_CREATED" if annotation_id is None else "ANNOTATION_UPDATED"
            event = {"action": action, "annotation": annotation, "task": truth.tasks[task_id]}
            return {**event, "project": truth.project()}

    def relabel(self, annotation_id: int) -> None:
        """Change an annotation."""
        self.label(self.label_studio.truth.annotations[annotation_id]["task"], annotation_id=annotation_id)

    def delete(self, annotation_id: int) -> None:
        """Delete an annotation."""
        truth = self.label_studio.truth
        with truth.lock:
            del truth.annotations[annotation_id]
            self.deleted.add(annotation_id)
            project = truth.project()
        self.send({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": annotation_id}], "project": project})

    def remove(self, task_id: int) -> None:
        """Delete a task with all that belongs to it."""
        truth = self.label_studio.truth
        with truth.lock:
            self.deleted |= {each["id"] for each in truth.annotations.values() if each["task"] == task_id}
            truth.delete_task(task_id)
            project = truth.project()
        self.send({"action": "TASKS_DELETED", "tasks": [{"id": task_id}], "project": project})

    def ask(self, task_ids: list[int]) -> None:
        """Ask for suggestions as the label stream does."""
        with self.label_studio.truth.lock:
            tasks = [self.label_studio.truth.tasks[task_id] for task_id in task_ids]
        body = {"tasks": tasks, "project": self.label_studio.truth.identity, "label_config": LABEL_CONFIG}
        answer = self._post("/predict", body, timeout_s=20.0)
        if answer is not None and answer.status_code == 200 and len(answer.json()["results"]) != len(tasks):
            raise Lost(f"{len(tasks)} tasks were asked for, {answer.text} is the answer")

    def send(self, event: Json) -> None:
        """Tell of an event at once, later, or more than once; a dead Label Studio tells of nothing."""
        if not self.label_studio.is_alive:
            self.counts["event: never sent"] += 1
            return
        fate = self.random.random()
        if fate > 0.15:
            self.deliver(event)
        if fate < 0.3:
            self.counts["event: late"] += 1
            self.late.append((time.monotonic() + self.random.uniform(0.0, 8.0), event))
        elif fate > 0.85:
            self.counts["event: twice"] += 1
            self.deliver(event)

    def send_late(self, *, all_of_them: bool = False) -> None:
        """Tell of what is due, in no order."""
        due = [each for each in self.late if all_of_them or each[0] <= time.monotonic()]
        self.late = [each for each in self.late if each not in due]
        self.random.shuffle(due)
        for _, event in due:
            self.deliver(event)

    def deliver(self, event: Json) -> None:
        """Send an event as Label Studio does: once, with a second's patience."""
        answer = self._post("/webhook", event, timeout_s=1.0)
        if answer is None or answer.status_code != 200:
            self.counts["event: not acknowledged"] += 1
            return
        self.counts["event: acknowledged"] += 1
        if event["action"] in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
            annotation = event["annotation"]
            last = self.acknowledged.get(annotation["id"], "")
            self.acknowledged[annotation["id"]] = max(last, annotation["updated_at"])

    def _post(self, path: str, body: Json, timeout_s: float) -> requests.Response | None:
        try:
            answer = requests.post(self.tandem.url + path, json=body, timeout=timeout_s)
        except requests.RequestException:
            self.counts[f"{path}: no answer"] += 1
            return None
        self.counts[f"{path}: {answer.status_code}"] += 1
        if answer.status_code not in (200, 503):
            raise Lost(f"{path} was answered with {answer.status_code}: {answer.text[:500]}")
        return answer

    def check_acknowledged(self) -> None:
        """Make sure that every acknowledged label is stored, or a newer one in its place, or deleted since."""
        # what is acknowledged from here on may not be stored yet
        acknowledged = dict(self.acknowledged)
        stored = stored_annotations(self.tandem.model_dir)
        for annotation_id, updated_at in acknowledged.items():
            row = stored.get(annotation_id)
            if row is None:
                raise Lost(f"annotation {annotation_id} was acknowledged and is not stored")
            if row.deleted:
                if annotation_id not in self.deleted:
                    raise Lost(f"annotation {annotation_id} was acknowledged and is stored as deleted")
            elif row.updated_at < datetime.fromisoformat(updated_at):
                raise Lost(f"annotation {annotation_id} of {updated_at} was acknowledged, {row.updated_at} is stored")


@dataclass(frozen=True)
class StoredAnnotation:
    task_id: int | None
    class_names: list[str]
    updated_at: datetime
    deleted: bool


def rows(model_dir: Path, statement: str) -> list[tuple[Any, ...]]:
    """Read the database beside its owners."""
    connection = sqlite3.connect(model_dir / "tandem.sqlite3", timeout=30)
    with contextlib.closing(connection):
        return connection.execute(statement).fetchall()


def stored_annotations(model_dir: Path) -> dict[int, StoredAnnotation]:
    """Return every row of the replica, tombstones too; a second row of the same annotation is an error."""
    found = rows(model_dir, "SELECT id, task_id, class_names, updated_at, deleted_at FROM annotation")
    assert len({row[0] for row in found}) == len(found)
    return {
        annotation_id: StoredAnnotation(
            task_id=task_id,
            class_names=json.loads(class_names),
            updated_at=datetime.fromisoformat(updated_at or "1970-01-01").replace(tzinfo=UTC),
            deleted=deleted_at is not None,
        )
        for annotation_id, task_id, class_names, updated_at, deleted_at in found
    }


@dataclass
class Mischief:
    """Breaks one thing after the other; each fault ends by itself."""

    label_studio: LabelStudio
    tandem: Processes
    random: random.Random
    disk: Path | None
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def n_kills(self) -> int:
        """How many processes were killed so far."""
        return sum(n for what, n in self.counts.items() if what.startswith("kill"))

    def do_one(self) -> None:
        """Do some harm, and wait for more or less of its effect."""
        faults: dict[Callable[[], None], float] = {
            self.kill: 10.0,
            self.crash_at_writes: 2.0,
            self.cut_writes: 1.0,
            self.lock_database: 1.0,
            self.kill_label_studio: 1.0,
            self.move_clock: 1.0,
            self.fill_disk: 1.0 if self.disk else 0.0,
        }
        self.random.choices(list(faults), list(faults.values()))[0]()
        self.tandem.start()
        time.sleep(self.random.expovariate(1.0))

    def kill(self) -> None:
        """Kill a process; what it left half written may have lost its end."""
        alive = [victim for victim in KILL_WEIGHTS if self.tandem.find(victim)]
        victim = self.random.choices(alive, [KILL_WEIGHTS[each] for each in alive])[0]
        if self.tandem.kill(victim, self.random.random()):
            self.counts[f"kill: {victim}"] += 1
            self.tear_files()

    def tear_files(self) -> None:
        """Cut off the end of what dead processes left in scratch folders and temporary files."""
        folder = self.tandem.model_dir
        for left in [*folder.glob("artifacts/.scratch/*"), *folder.glob("images/.*")]:
            with contextlib.suppress(OSError), open_unlocked(left):
                for path in [left] if left.is_file() else left.rglob("*"):
                    if path.is_file():
                        os.truncate(path, self.random.randint(0, path.stat().st_size))
                        self.counts["fault: file left behind torn"] += 1

    def crash_at_writes(self) -> None:
        """Let processes die right before or after they make something durable."""
        self.tandem.let(crash_share=self.random.choice([0.02, 0.1, 0.3]))
        time.sleep(self.random.uniform(0.5, 2.0))
        self.tandem.let(crash_share=0.0)
        self.counts.update(f"kill at a write: {victim}" for victim in self.tandem.crashes())

    def cut_writes(self) -> None:
        """Let writes end early where a file reaches a size."""
        self.tandem.limit_files(int(2 ** self.random.uniform(9, 20)))
        time.sleep(self.random.uniform(0.3, 2.0))
        self.tandem.limit_files(-1)
        self.counts["fault: writes cut short"] += 1

    def lock_database(self) -> None:
        """Be another process that holds the database, mostly longer than Label Studio waits for an answer."""
        path = self.tandem.model_dir / "tandem.sqlite3"
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self.random.choice([0.3, 1.5, 4.0]))
            connection.execute("ROLLBACK")
            self.counts["fault: database busy"] += 1

    def kill_label_studio(self) -> None:
        """Let Label Studio be gone for a while."""
        self.label_studio.die()
        time.sleep(self.random.uniform(0.2, 4.0))
        self.label_studio.start()
        self.counts["fault: Label Studio killed"] += 1

    def move_clock(self) -> None:
        """Set the clock wrong, forwards or backwards, from now on."""
        self.tandem.let(clock_offset_s=self.random.uniform(-LARGEST_OFFSET_S, LARGEST_OFFSET_S))
        self.counts["fault: clock moved"] += 1

    def fill_disk(self) -> None:
        """Leave no free byte on the disk for a while."""
        assert self.disk
        with full_disk(self.disk):
            time.sleep(self.random.uniform(0.5, 3.0))
        self.counts["fault: disk full"] += 1

    def stop(self) -> None:
        """Be good from now on."""
        self.tandem.let(clock_offset_s=0.0, crash_share=0.0)
        self.counts.update(f"kill at a write: {victim}" for victim in self.tandem.crashes())
        self.tandem.limit_files(-1)
        if not self.label_studio.is_alive:
            self.label_studio.start()
        self.tandem.start()


@contextmanager
def open_unlocked(path: Path) -> Iterator[None]:
    """Hold the lock of what a dead process left.

    Raises:
        BlockingIOError: its process lives.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def fill(file: io.FileIO, size: int) -> NoReturn:
    while True:
        file.write(b"\0" * size)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Take all room that is left on a disk."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                    fill(file, size)
        yield
    finally:
        ballast.unlink(missing_ok=True)


def storm(annotators: Annotators, mischief: Mischief, n_kills: int) -> None:
    """Work and harm side by side until so many processes were killed."""
    over = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not over.is_set():
                annotators.act()
                over.wait(annotators.random.expovariate(12.0))
        except BaseException as failure:  # noqa: BLE001 - raised again where it is seen
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while mischief.n_kills < n_kills and not failures:
            mischief.do_one()
            annotators.check_acknowledged()
            sys.stderr.write(f"\r{mischief.n_kills} of {n_kills} killed")
    finally:
        over.set()
        thread.join()
        mischief.stop()
    if failures:
        raise failures[0]
