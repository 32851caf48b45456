"""What must be true of a Tandem that has come to rest, whatever happened to it before."""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import requests

from backend.adapters.feature_rows import HEADER_FILE
from backend.adapters.features import FeatureFiles
from backend.domain import INTERRUPTED
from backend.promotion import TrainedLabels
from backend.worker import LONGEST_WAIT
from model.backbones import load_saved_backbone
from model.checkpoint import load_out_of_fold, load_predictor
from tests.chaos.label_studio import PROJECT_ID, Truth
from tests.chaos.processes import Processes
from tests.chaos.storm import rows, stored_annotations
from tests.e2e.loop import LABEL_CONFIG

NEWEST_NETWORK = "SELECT backbone_digest FROM version WHERE kind = 'finetune' ORDER BY number DESC LIMIT 1"
TEMPORARY = ("**/.*", "**/*.tmp")
REST_TIMEOUT_S = 120.0 + LONGEST_WAIT.total_seconds()
"""A job that was put off by a clock ahead of time waits that long when the clock is right again."""


class TruthKeeper(Protocol):
    """A Label Studio, of the tests or a real one."""

    @property
    def truth(self) -> Truth:
        """All that it knows now."""


def wait_for_rest(label_studio: TruthKeeper, tandem: Processes) -> None:
    """Wait until all is as it has to be in the end."""
    deadline_s = time.monotonic() + REST_TIMEOUT_S
    while problem := unrest(label_studio.truth, tandem):
        if time.monotonic() > deadline_s:
            sys.stderr.write(tandem.log_file.read_text()[-20_000:])
            pytest.fail(f"not at rest after {REST_TIMEOUT_S:.0f} s: {problem}")
        time.sleep(0.5)


def unrest(truth: Truth, tandem: Processes) -> str | None:
    """Return what is not yet as it has to be in the end, or nothing."""
    with truth.lock:
        problems = [
            labels_differ(truth, tandem.model_dir),
            tasks_differ(truth, tandem.model_dir),
            jobs_left(tandem),
            suggestions_missing(truth, tandem),
            leftovers(tandem),
        ]
    return "; ".join(problem for problem in problems if problem) or None


def labels_differ(truth: Truth, model_dir: Path) -> str | None:
    """Compare the replica of annotations with the truth, one by one."""
    stored = {
        key: (row.task_id, row.class_names[0] if row.class_names else None, row.updated_at)
        for key, row in stored_annotations(model_dir).items()
        if not row.deleted
    }
    true = {
        key: (task_id, class_name, datetime.fromisoformat(updated_at))
        for key, (task_id, class_name, updated_at) in truth.labels().items()
    }
    wrong = sorted(key for key in stored.keys() | true.keys() if stored.get(key) != true.get(key))
    return f"annotations {wrong[:5]} of {len(true)} differ" if wrong else None


def tasks_differ(truth: Truth, model_dir: Path) -> str | None:
    """Compare the replica of tasks with the truth, and see that each is embedded."""
    stored = dict(rows(model_dir, "SELECT id, image_url FROM task"))
    true = {task_id: task["data"]["image"] for task_id, task in truth.tasks.items()}
    if stored != true:
        return f"tasks differ: {sorted(set(stored.items()) ^ set(true.items()))[:4]}"
    missing = rows(model_dir, "SELECT id, image_problem FROM task WHERE backbone_digest IS NULL")
    return f"tasks without features: {missing[:5]}" if missing else None


def jobs_left(tandem: Processes) -> str | None:
    """Name the jobs that are queued or running, but for the reconciliation that comes again and again."""
    left = rows(
        tandem.model_dir,
        "SELECT kind, status, run_after, lease_until, reason FROM job "
        "WHERE status IN ('queued', 'running') AND kind != 'sync'",
    )
    return f"unfinished jobs: {left}" if left else None


def suggestions_missing(truth: Truth, tandem: Processes) -> str | None:
    """Tell whether each unlabelled task has one suggestion of the active version, and the annotators see it."""
    active = rows(tandem.model_dir, "SELECT name, n_labels FROM version WHERE status = 'active'")
    n_labels = len(truth.tasks) - len(truth.unlabelled())
    newest = rows(tandem.model_dir, "SELECT n_labels FROM version WHERE kind = 'head' ORDER BY number DESC LIMIT 1")
    if newest != [(n_labels,)]:
        return f"the newest head knows {newest} labels of {n_labels}"
    if not active:
        return "no version is active"
    name = active[0][0]
    if truth.model_version != name:
        return f"annotators see {truth.model_version}, active is {name}"
    by_task = [each["task"] for each in truth.predictions if each["task"] in truth.unlabelled()]
    if sorted(by_task) != sorted(truth.unlabelled()):
        return f"{len(by_task)} suggestions for {len(truth.unlabelled())} tasks"
    foreign = set(truth.counts()) - {name}
    return f"suggestions of other versions are left: {sorted(foreign)}" if foreign else None


def leftovers(tandem: Processes) -> str | None:
    """Name the temporary files and folders that are left."""
    found = {path.relative_to(tandem.model_dir) for pattern in TEMPORARY for path in tandem.model_dir.glob(pattern)}
    left = sorted(str(path) for path in found - {Path("artifacts/.scratch")})
    return f"temporary files are left: {left[:5]}" if left else None


@dataclass(frozen=True)
class EndState:
    """What two runs with the same labels have in common, whatever became of their processes."""

    labels: dict[str, str]
    suggestions: dict[str, tuple[str, float]]
    backbone: str
    finetuned: list[str]
    checkpoint: str
    features: dict[str, np.ndarray[Any, Any]]


def end_state(truth: Truth, tandem: Processes) -> EndState:
    """Return it; tasks go by their image, because ids may differ."""
    images = {task_id: str(task["data"]["image"]) for task_id, task in truth.tasks.items()}
    suggestions = {}
    for each in truth.predictions:
        if each["task"] in truth.unlabelled():
            chosen = each["result"][0]["value"]["choices"][0]
            suggestions[images[each["task"]]] = (chosen, float(each["score"]))
    digests = dict(rows(tandem.model_dir, "SELECT image_url, image_digest FROM task"))
    ((name, backbone),) = rows(tandem.model_dir, "SELECT name, backbone_digest FROM version WHERE status = 'active'")
    found, here = FeatureFiles(tandem.model_dir / "features").read(backbone, list(digests.values()))
    assert here.all()
    return EndState(
        labels={images[task_id]: str(name) for task_id, name, _ in truth.labels().values() if name},
        suggestions=suggestions,
        backbone=backbone,
        finetuned=[digest for (digest,) in rows(tandem.model_dir, NEWEST_NETWORK)],
        checkpoint=name.rsplit("-", 1)[1],
        features=dict(zip(digests, found, strict=True)),
    )


def check_rest(tandem: Processes) -> None:
    """Look through what a Tandem that was stopped left on its disk."""
    model_dir = tandem.model_dir
    with closing(sqlite3.connect(model_dir / "tandem.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    versions = dict(rows(model_dir, "SELECT name, status || ': ' || reason FROM version"))
    statuses = [status.partition(":")[0] for status in versions.values()]
    assert statuses.count("active") == 1
    assert statuses.count("candidate") == 0
    judged = {name for name, status in versions.items() if status != f"rejected: {INTERRUPTED}"}
    folders = {path.name: path for path in (model_dir / "artifacts" / "versions" / f"p{PROJECT_ID}").iterdir()}
    assert judged <= set(folders) <= set(versions)
    for folder in folders.values():
        # each loads, and its checksums hold
        load_predictor(folder)
        load_out_of_fold(folder)
        TrainedLabels.read(folder)
    for folder in (model_dir / "artifacts").glob("backbones/*"):
        assert load_saved_backbone(folder).digest == folder.name
    assert leftovers(tandem) is None
    for backbone in (model_dir / "features").iterdir():
        # of a backbone that was given up only the locks are left
        n_files = 1 if (backbone / HEADER_FILE).exists() else 0
        assert len(list(backbone.glob("rows*"))) == len(list(backbone.glob("keys*"))) == n_files


def check_answers(truth: Truth, tandem: Processes, state: EndState) -> None:
    """Ask for suggestions as Label Studio does: they are those that were pushed."""
    tasks = [truth.tasks[task_id] for task_id in sorted(truth.unlabelled())]
    body = {"tasks": tasks, "project": truth.identity, "label_config": LABEL_CONFIG}
    answer = requests.post(f"{tandem.url}/predict", json=body, timeout=30)
    assert answer.status_code == 200
    for task, entry in zip(tasks, answer.json()["results"], strict=True):
        chosen, score = state.suggestions[task["data"]["image"]]
        assert entry["result"][0]["value"]["choices"] == [chosen]
        assert abs(entry["score"] - score) < 1e-6
