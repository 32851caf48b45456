"""A background process is found again, never confused with a stranger, and really ends."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from backend.background_process import BackgroundProcess, ServerFailed, free_port

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)",
]


def wait_for_log(process: BackgroundProcess, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in process.log_file.read_text():
        assert time.monotonic() < deadline, process.log_tail()
        time.sleep(0.02)


def test_a_second_object_finds_and_stops_it(tmp_path: Path) -> None:
    process = BackgroundProcess(folder=tmp_path, name="sleeper")
    assert not process.is_running
    process.start(SLEEP, {})
    wait_for_log(process, "here")

    found = BackgroundProcess(folder=tmp_path, name="sleeper")
    assert found.is_running
    with pytest.raises(ServerFailed, match="runs already"):
        found.start(SLEEP, {})
    assert process.stop()
    assert not found.is_running
    assert not found.stop()


def test_a_process_that_ignores_the_gentle_signal_is_killed(tmp_path: Path) -> None:
    process = BackgroundProcess(folder=tmp_path, name="stubborn")
    process.start(STUBBORN, {})
    wait_for_log(process, "here")
    assert process.stop(patience_s=0.3)
    assert not process.is_running


def test_a_pid_without_its_lock_belongs_to_a_stranger(tmp_path: Path) -> None:
    process = BackgroundProcess(folder=tmp_path, name="gone")
    process.pid_file.write_text(f"{os.getpid()}\n")
    assert not process.is_running
    assert not process.stop()


def test_a_process_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    process = BackgroundProcess(folder=tmp_path, name="brief")
    process.start([sys.executable, "-c", "print('no such port')"], {})
    deadline = time.monotonic() + 20
    while process.is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ServerFailed, match="no such port"):
        process.check_alive()


def test_a_missing_program_is_a_clear_error(tmp_path: Path) -> None:
    process = BackgroundProcess(folder=tmp_path, name="missing")
    with pytest.raises(ServerFailed, match="cannot be started"):
        process.start([str(tmp_path / "nothing")], {})
    assert not process.is_running


def test_a_preferred_port_is_taken_unless_somebody_listens_there() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port(preferred=taken) != taken
    preferred = free_port()
    assert free_port(preferred=preferred) == preferred
