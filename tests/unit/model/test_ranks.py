"""Processes that end together; what they do here needs no torch, so that each starts within a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import structlog

from model.ranks import OnProgress, RankFailed, Work, run_ranks


def wait_for_ever() -> None:
    while True:
        time.sleep(60)


def add_up(rank: int, folder: Path, on_progress: OnProgress) -> int:
    """Rank 1 leaves a number for rank 0, which adds its own."""
    left = folder / "left"
    if rank == 1:
        left.with_suffix(".partial").write_text("40")
        left.with_suffix(".partial").rename(left)
        structlog.get_logger().info("left", number=40)
        return -1
    while not left.exists():
        time.sleep(0.01)
    on_progress(1, 2)
    on_progress(2, 2)
    return int(left.read_text()) + 2


def report_and_wait(on_progress: OnProgress) -> None:
    on_progress(1, 9)
    wait_for_ever()


def wait_in_silence(_: OnProgress) -> None:
    wait_for_ever()


def fail(error: Exception, _: OnProgress) -> None:
    raise error


def test_the_first_ones_result_comes_back_with_progress_and_log(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    works = [partial(add_up, rank, tmp_path) for rank in range(2)]
    with structlog.testing.capture_logs() as logs:
        result = run_ranks(works, on_progress=lambda done, total: seen.append((done, total)))
    assert result == 42
    assert seen == [(1, 2), (2, 2)]
    assert logs == [{"event": "left", "number": 40, "rank": 1, "log_level": "info"}]
    assert multiprocessing.active_children() == []


class Cancelled(Exception):
    """Somebody pressed cancel."""


def cancel(*_: int) -> None:
    assert len(multiprocessing.active_children()) == 2
    raise Cancelled("somebody")


def kill_second_rank(*_: int) -> None:
    (second,) = [each for each in multiprocessing.active_children() if each.name == "rank 1"]
    os.kill(second.pid or 0, signal.SIGKILL)


@pytest.mark.parametrize(
    ("works", "on_progress", "kind", "message"),
    [
        ([report_and_wait, wait_in_silence], cancel, Cancelled, "somebody"),
        ([report_and_wait, wait_in_silence], kill_second_rank, RankFailed, "rank 1 of 2 ended by SIGKILL: .* memory"),
        ([wait_in_silence, partial(fail, KeyError("label"))], cancel, KeyError, "label"),
        ([wait_in_silence, partial(fail, TypeError("no"))], cancel, RankFailed, "rank 1 failed: TypeError: no"),
    ],
)
def test_what_ends_one_ends_all(
    works: list[Work[None]], on_progress: Callable[[int, int], None], kind: type[Exception], message: str
) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(kind, match=message):
        run_ranks(works, on_progress=on_progress, expected=(KeyError,))
    assert multiprocessing.active_children() == []
    assert [entry["event"] for entry in logs] == (["rank failed"] if "TypeError" in message else [])
    assert all("Traceback" in entry["exception"] for entry in logs)


PARENT = """
    import multiprocessing
    from model.ranks import run_ranks
    from tests.unit.model.test_ranks import report_and_wait, wait_in_silence

    def say_who_is_there(*_):
        print(*[each.pid for each in multiprocessing.active_children()], flush=True)

    if __name__ == "__main__":
        run_ranks([report_and_wait, wait_in_silence], on_progress=say_who_is_there)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_none_outlives_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)
