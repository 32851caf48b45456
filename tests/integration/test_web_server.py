"""Two real web processes, forked from one that has the application loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web import WebServer, wait_for, web_server
from tests.world import PROJECT, World, pets


def open_files(pid: int) -> list[str]:
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(str(file.readlink()))
    return found


def has_database_open(pid: int) -> bool:
    return any("tandem.sqlite3" in file for file in open_files(pid))


@pytest.fixture
def server(learned: World) -> Iterator[WebServer]:
    with web_server(learned.folder) as server:
        yield server


def test_workers_share_the_application_but_nothing_that_is_open(server: WebServer, learned: World) -> None:
    """Whichever answers: the answers are right, and a rollback shows in all of them at once."""
    assert not has_database_open(server.master)
    assert not any(map(has_database_open, server.workers))
    first = learned.active

    def both_have_answered() -> bool:
        for task_id, name in pets(12).items():
            (entry,) = server.predict(task_id)
            assert entry["model_version"] == first.name
            assert entry["result"][0]["value"] == {"choices": [name]}
        return all(map(has_database_open, server.workers))

    wait_for(both_have_answered)
    assert not has_database_open(server.master)
    assert len([file for file in open_files(server.master) if file.startswith("socket:")]) == 1

    learned.label({1: "cat"})
    learned.fit()
    for version in (learned.active, first, learned.active):
        with learned.database.transaction() as stores:
            stores.versions.activate(PROJECT, version.name, "tested")
        assert {server.predict(task_id)[0]["model_version"] for task_id in [*pets(12)] * 3} == {version.name}
