"""The artifact folder: what is no artifact in it, and what the dead leave behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.adapters.artifacts import LocalArtifacts
from tests.artifacts import KEY, content, publish


@pytest.fixture
def artifacts(tmp_path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


def test_stray_files_are_no_artifacts(artifacts, tmp_path):
    publish(artifacts, KEY)
    for stray in ("notes.txt", ".DS_Store", "versions/.DS_Store"):
        (tmp_path / "artifacts" / stray).write_text("stray")
    publish(artifacts, "versions/p6/a")
    assert artifacts.keys("") == [KEY, "versions/p6/a"]


def hold_scratch(root: Path, ready) -> None:
    with LocalArtifacts(root).scratch() as folder:
        (folder / "half").write_text("half")
        ready.set()
        time.sleep(60)


def test_clean_removes_what_the_dead_left_and_spares_the_living(artifacts, tmp_path):
    assert artifacts.clean() == 0
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=hold_scratch, args=(tmp_path / "artifacts", ready))
    process.start()
    assert ready.wait(60)
    with artifacts.scratch() as own:
        assert artifacts.clean() == 0
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert artifacts.clean() == 1
        assert list(own.parent.iterdir()) == [own]


def test_clean_beside_busy_publishers(artifacts):
    with ThreadPoolExecutor(3) as pool:
        cleaning = pool.submit(lambda: [artifacts.clean() for _ in range(300)])
        list(pool.map(lambda number: publish(artifacts, f"versions/{number}"), range(60)))
        cleaning.result()
    assert len(artifacts.keys("versions")) == 60
    assert all(len(content(artifacts.fetch(key))) == 2 for key in artifacts.keys("versions"))
