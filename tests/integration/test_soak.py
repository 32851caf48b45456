"""Three web processes and three workers on one PostgreSQL: no job twice, no stale version, no deadlock, no label lost.

make soak          ten minutes of it
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from backend.background_process import free_port
from tests.chaos.label_studio import LabelStudio, Truth
from tests.e2e.loop import CLASS_NAMES, LABEL_CONFIG, picture
from tests.postgresql import LocalPostgresql

N_EACH = 3
N_TASKS = 60
START_TIMEOUT_S = 240.0
STALE_S = 1.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Installation:
    """Real ``tandem serve --no-worker`` and ``tandem worker`` processes that share a database and a folder."""

    def __init__(self, folder: Path, database_url: str, label_studio: LabelStudio) -> None:
        self.database_url = database_url
        self.log_files = [folder / f"{kind}-{number}.log" for kind in ("web", "worker") for number in range(N_EACH)]
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(N_EACH)]
        self.label_studio = label_studio
        self._folder = folder
        self._supervisors: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for log_file in self.log_files:
            kind, number = log_file.stem.split("-")
            url = self.urls[int(number)]
            environment = os.environ | {  # noqa: TID251 - handed on to children
                "LABEL_STUDIO_URL": self.label_studio.url,
                "LABEL_STUDIO_API_KEY": "0123456789abcdef0123456789abcdef01234567",
                "PUBLIC_URL": self.urls[0],
                "HOST": "127.0.0.1",
                "PORT": url.rsplit(":", 1)[1],
                "DATABASE_URL": self.database_url,
                "MODEL_DIR": str(self._folder / "state"),
                "BACKBONE": "shufflenet_v2_x0_5",
                "WEIGHTS": "none",
                "IMAGE_VIEWS": "1",
                "TRAIN_QUIET_S": "0.2",
                "TRAIN_MAX_WAIT_S": "1",
                "FINETUNE_MIN_LABELS": "1000000",
                "SYNC_INTERVAL_S": "3",
                "THREADS": "4",
            }
            arguments = ("serve", "--no-worker") if kind == "web" else ("worker",)
            with log_file.open("wb") as log:
                self._supervisors.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "backend", *arguments], env=environment, stdout=log, stderr=log
                    )
                )
        wait_for(lambda: all(map(is_up, self.urls)), "the web servers are not up")

    def stop(self) -> list[int]:
        for process in self._supervisors:
            process.send_signal(signal.SIGTERM)
        return [process.wait(90) for process in self._supervisors]

    def kill(self) -> None:
        for process in self._supervisors:
            if process.poll() is None:
                process.kill()
                process.wait()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]

    def log(self) -> Iterator[dict[str, Any]]:
        for log_file in self.log_files:
            for line in log_file.read_text().splitlines():
                if line.startswith("{"):
                    yield json.loads(line)


class StaleWatch(threading.Thread):
    """Asks whichever web server, all the time, and notes for how long an answer's version had been replaced."""

    def __init__(self, installation: Installation, truth: Truth) -> None:
        super().__init__(daemon=True)
        self._installation = installation
        self._truth = truth
        self.stopping = threading.Event()
        self.versions: Counter[str] = Counter()
        self.staleness_s: list[float] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            self.failure = error

    def _watch(self) -> None:
        first_seen_s: dict[int, float] = {}
        urls = itertools.cycle(self._installation.urls)
        draw = random.Random(1)
        with psycopg.connect(self._installation.database_url, autocommit=True) as connection:
            while not self.stopping.is_set():
                row = connection.execute("SELECT number FROM version WHERE status = 'active'").fetchone()
                asked_s = time.monotonic()
                if row:
                    first_seen_s.setdefault(row[0], asked_s)
                with self._truth.lock:
                    task = draw.choice(list(self._truth.tasks.values()))
                entry = predict(next(urls), task)
                if entry.get("result") and row:
                    self.versions[entry["model_version"]] += 1
                    answered = int(entry["model_version"].split("-")[1].removeprefix("v"))
                    if answered < row[0]:
                        self.staleness_s.append(asked_s - first_seen_s[row[0]])
                self.stopping.wait(0.03)


def predict(url: str, task: dict[str, Any]) -> dict[str, Any]:
    body = {"tasks": [task], "project": "1.1767225600", "label_config": LABEL_CONFIG}
    answer = requests.post(f"{url}/predict", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["results"]
    return entry  # type: ignore[no-any-return]


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=1).ok
    except requests.RequestException:
        return False


def wait_for(condition: Callable[[], bool], message: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, message
        time.sleep(0.2)


@pytest.fixture
def installation(tmp_path: Path, postgresql_server: LocalPostgresql) -> Iterator[Installation]:
    label_studio = LabelStudio(Truth(backend_url=""))
    made = Installation(tmp_path, postgresql_server.new_database(), label_studio)
    label_studio.truth.backend_url = made.urls[0]
    label_studio.start()
    try:
        yield made
    finally:
        made.kill()
        label_studio.die()


def test_they_share_one_database(installation: Installation, request: pytest.FixtureRequest, capsys: Any) -> None:
    truth = installation.label_studio.truth
    installation.start()
    send = sender(installation)
    with truth.lock:
        names = [CLASS_NAMES[number % len(CLASS_NAMES)] for number in range(N_TASKS)]
        tasks = [truth.add_task(f"{name}-{n}.png", picture(name, n)) for n, name in enumerate(names)]
        send({"action": "TASKS_CREATED", "tasks": tasks, "project": truth.project()})
    name_of = {task["id"]: name for task, name in zip(tasks, names, strict=True)}
    embedded = "SELECT count(*) FROM task WHERE backbone_digest IS NOT NULL"
    wait_for(lambda: installation.rows(embedded) == [(N_TASKS,)], "not all images are embedded")

    watch = StaleWatch(installation, truth)
    watch.start()
    draw = random.Random(0)
    until_s = time.monotonic() + request.config.getoption("--soak-s")
    annotation_of: dict[int, int] = {}
    while time.monotonic() < until_s or len(annotation_of) < 12:
        task_id = draw.choice(tasks)["id"]
        with truth.lock:
            known = annotation_of.get(task_id)
            annotation = truth.annotate(task_id, name_of[task_id], known)
            event = {"action": "ANNOTATION_UPDATED" if known else "ANNOTATION_CREATED", "annotation": annotation}
            event |= {"task": truth.tasks[task_id], "project": truth.project()}
        annotation_of[task_id] = annotation["id"]
        send(event)
        time.sleep(0.25)
    newest = "SELECT max(n_labels) FROM version WHERE status = 'active'"
    wait_for(lambda: installation.rows(newest) == [(len(annotation_of),)], "the last labels teach nothing")
    watch.stopping.set()
    watch.join(90)
    if watch.failure:
        raise watch.failure
    assert installation.stop() == [0] * 2 * N_EACH

    jobs = installation.rows("SELECT id, project_id, kind, status, started_at, finished_at, worker, reason FROM job")
    ended = Counter(line["job"] for line in installation.log() if line.get("event") == "job ended")
    with capsys.disabled():
        print(  # noqa: T201 - what the run saw is there to be read
            f"\n{len(jobs)} jobs by {len({job[6] for job in jobs if job[6]})} workers, {len(watch.versions)} versions "
            f"in {sum(watch.versions.values())} answers, {len(watch.staleness_s)} of them of a version just replaced"
            f" (at most {max(watch.staleness_s, default=0.0):.3f} s ago)"
        )
    odd = {f"{job[2]} {job[3]}: {job[7]}" for job in jobs if job[3] not in ("succeeded", "queued")}
    # a job that is tried again, as when an embedder was not up yet, takes a younger one for the same work in
    assert {each for each in odd if "cancelled: merged into job" not in each} == set()
    assert set(ended.values()) == {1}, "a job ran twice"
    assert set(ended) >= {job[0] for job in jobs if job[3] == "succeeded"}
    assert no_overlap([(job[1], job[2], job[4], job[5]) for job in jobs if job[3] == "succeeded"])
    assert len({job[6] for job in jobs if job[6]}) >= 2, "one worker did it all"
    assert len(watch.versions) >= 2
    assert max(watch.staleness_s, default=0.0) <= STALE_S
    assert installation.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    stored = installation.rows("SELECT id, task_id FROM annotation WHERE deleted_at IS NULL")
    assert sorted(stored) == sorted((annotation, task) for task, annotation in annotation_of.items())
    unexpected = [line for line in installation.log() if line.get("level") in ("error", "critical")]
    assert unexpected == []


def sender(installation: Installation) -> Callable[[dict[str, Any]], None]:
    urls = itertools.cycle(installation.urls)

    def send(event: dict[str, Any]) -> None:
        answer = requests.post(f"{next(urls)}/webhook", json=event, timeout=60)
        assert answer.status_code == 200, answer.text

    return send


def no_overlap(jobs: list[tuple[int, str, datetime, datetime]]) -> bool:
    """Tell whether no two jobs of a project and kind ran at the same time."""
    spans: dict[tuple[int, str], list[tuple[datetime, datetime]]] = defaultdict(list)
    for project_id, kind, started_at, finished_at in jobs:
        spans[project_id, kind].append((started_at, finished_at))
    return all(
        earlier[1] <= later[0] for several in spans.values() for earlier, later in itertools.pairwise(sorted(several))
    )
