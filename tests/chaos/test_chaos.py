"""Whatever dies, breaks off, fills up, is late or wrong: nothing that was acknowledged is lost, and all ends well.

    pytest tests/chaos --chaos-kills 400 --chaos-seed 7 --chaos-finetune

A seed draws who acts and what breaks; when a process is hit is up to the machine, so a seed makes a failure likely to
come again, not certain.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from backend.processes import runtime_folder
from tests.chaos.label_studio import PROJECT_ID, LabelStudio, Truth
from tests.chaos.processes import Processes
from tests.chaos.storm import Annotators, Mischief, rows, storm
from tests.chaos.verdict import EndState, check_answers, check_rest, end_state, wait_for_rest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]

N_TASKS = 40
N_FIRST_LABELS = 9
DISK_MB = 64
FINETUNE_MIN_LABELS = 12

Start = Callable[[Path], tuple[LabelStudio, Processes]]


@pytest.fixture
def n_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--chaos-kills"))


@pytest.fixture
def is_finetuning(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--chaos-finetune"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small disk of its own, where we may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def start(tmp_path: Path, is_finetuning: bool) -> Iterator[Start]:
    """Start a Label Studio, and beside it a Tandem that keeps its state in a folder."""
    started: list[tuple[LabelStudio, Processes]] = []

    def start_both(model_dir: Path) -> tuple[LabelStudio, Processes]:
        folder = tmp_path / f"around-{model_dir.name}"
        folder.mkdir()
        label_studio = LabelStudio(Truth(backend_url=""))
        settings = {"FINETUNE_MIN_LABELS": str(FINETUNE_MIN_LABELS)} if is_finetuning else {}
        tandem = Processes(folder, model_dir, label_studio.url, **settings)
        label_studio.truth.backend_url = tandem.url
        started.append((label_studio, tandem))
        label_studio.start()
        tandem.start()
        return label_studio, tandem

    yield start_both
    for label_studio, tandem in started:
        tandem.destroy()
        label_studio.die()
        shutil.rmtree(runtime_folder(tandem.model_dir), ignore_errors=True)


def wait_until_up(tandem: Processes) -> None:
    deadline_s = time.monotonic() + 120
    while not tandem.is_up():
        assert time.monotonic() < deadline_s, tandem.log_file.read_text()[-5000:]
        time.sleep(0.2)


def finetune(label_studio: LabelStudio, tandem: Processes) -> None:
    """Have a network fine-tuned, whether or not one was before, and see that it is judged."""
    answer = requests.post(f"{tandem.url}/api/projects/{PROJECT_ID}/train", json={"kind": "finetune"}, timeout=30)
    assert answer.status_code == 202, answer.text
    wait_for_rest(label_studio, tandem)
    jobs = rows(tandem.model_dir, "SELECT status, reason FROM job WHERE kind = 'finetune' ORDER BY id DESC LIMIT 1")
    n_labels = len(label_studio.truth.tasks) - len(label_studio.truth.unlabelled())
    newest = "SELECT n_labels, status FROM version WHERE kind = 'finetune' ORDER BY number DESC LIMIT 1"
    ((known, status),) = rows(tandem.model_dir, newest)
    assert [each[0] for each in jobs] == ["succeeded"], jobs
    assert known == n_labels
    assert status in ("active", "rejected")


def end_well(annotators: Annotators, *, is_finetuning: bool) -> EndState:
    """Let everything come to rest, change one label and change it back, and return what is there in the end.

    A version is replaced, whatever it is worth, once one of its labels was withdrawn: so the one that is active in the
    end knows exactly the labels there are.
    """
    label_studio, tandem = annotators.label_studio, annotators.tandem
    truth = label_studio.truth
    wait_until_up(tandem)
    wait_for_rest(label_studio, tandem)
    if is_finetuning:
        finetune(label_studio, tandem)
    annotation_id, (task_id, right, _) = min(each for each in truth.labels().items() if each[1][1])
    for class_name in ("green" if right == "red" else "red", right):
        annotators.change(annotation_id, task_id, class_name)
        wait_for_rest(label_studio, tandem)
    state = end_state(truth, tandem)
    check_answers(truth, tandem, state)
    assert tandem.stop() == [0, 0]
    check_rest(tandem)
    return state


def report(seed: int, seconds: float, *counts: Counter[str]) -> None:
    total = sum(counts, Counter())
    lines = [f"seed {seed}, {seconds:.0f} s, {sum(n for what, n in total.items() if what.startswith('kill'))} kills"]
    lines += [f"  {what}: {n}" for what, n in sorted(total.items())]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")


def test_nothing_is_lost_and_all_ends_well(
    start: Start, seed: int, n_kills: int, disk: Path | None, tmp_path: Path, is_finetuning: bool
) -> None:
    sys.stdout.write(f"--chaos-seed {seed}\n")
    label_studio, tandem = start((disk or tmp_path) / "storm")
    annotators = Annotators(label_studio, tandem, random.Random(seed))
    mischief = Mischief(label_studio, tandem, random.Random(seed + 1), disk)
    annotators.upload(N_TASKS)
    wait_until_up(tandem)
    for task_id in sorted(label_studio.truth.unlabelled())[:N_FIRST_LABELS]:
        annotators.label(task_id)
    wait_for_rest(label_studio, tandem)
    started_s = time.monotonic()
    storm(annotators, mischief, n_kills)
    annotators.send_late(all_of_them=True)
    annotators.check_acknowledged()
    disturbed = end_well(annotators, is_finetuning=is_finetuning)
    report(seed, time.monotonic() - started_s, annotators.counts, mischief.counts)

    quiet_studio, quiet_tandem = start(tmp_path / "calm")
    quiet_studio.truth.take_over(label_studio.truth)
    undisturbed = end_well(Annotators(quiet_studio, quiet_tandem, random.Random(seed)), is_finetuning=is_finetuning)

    assert disturbed.labels == undisturbed.labels
    assert disturbed.features.keys() == undisturbed.features.keys()
    assert disturbed.suggestions.keys() == undisturbed.suggestions.keys()
    if is_finetuning and disturbed.backbone != undisturbed.backbone:
        # which labels a network was fine-tuned on, and what it had to be better than, was up to chance
        sys.stdout.write("each has a network of its own: what they see in images and suggest differs\n")
        return
    for image, row in undisturbed.features.items():
        np.testing.assert_array_equal(disturbed.features[image], row)
    assert disturbed.suggestions == undisturbed.suggestions
    assert disturbed.finetuned == undisturbed.finetuned
    assert disturbed.checkpoint == undisturbed.checkpoint
