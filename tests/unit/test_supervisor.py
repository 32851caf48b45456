"""Processes are started together, started again when one dies, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.supervisor import CONFIGURATION_STATUS

SUPERVISE = """
import sys
from pathlib import Path
from backend.supervisor import Command, Supervisor

import backend.supervisor
backend.supervisor.GRACE_S = 1.0
child = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(100)"
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + child
Supervisor([
    Command(name=name, arguments=(sys.executable, "-c", code, str(Path(sys.argv[1]) / name)))
    for name, code in (("web", child), ("worker", stubborn))
]).run()
print("ended in good order")
"""


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def pids(path: Path) -> list[int]:
    """The processes that have run under a name, oldest first."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as started:
        wait_for(lambda: bool(pids(tmp_path / "web") and pids(tmp_path / "worker")))
        yield started
        if started.poll() is None:
            started.terminate()
        started.wait(20)
    assert not any(is_alive(pid) for name in ("web", "worker") for pid in pids(tmp_path / name))


def test_a_process_that_dies_is_started_again_and_the_other_one_left_alone(
    supervisor: subprocess.Popen[str], tmp_path: Path
) -> None:
    (worker,) = pids(tmp_path / "worker")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(pids(tmp_path / "worker")) == 2)
    assert len(pids(tmp_path / "web")) == 1
    assert supervisor.poll() is None


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """As when there is no memory for it, or no process id; here its program is not there yet."""
    script = """
import sys
from backend.supervisor import Command, Supervisor
waits = "import os, sys, time; open(sys.argv[1] + '-ran', 'a').write(str(os.getpid())); time.sleep(100)"
Supervisor([Command(name="web", arguments=(sys.argv[1], "-c", waits, sys.argv[1]))]).run()
"""
    program = tmp_path / "web"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(program)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout
        assert "not started" in supervisor.stdout.readline()
        program.symlink_to(sys.executable)
        wait_for(lambda: bool(pids(tmp_path / "web-ran")))
        supervisor.terminate()
        assert supervisor.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_end_together_even_one_that_does_not_listen(
    supervisor: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    supervisor.send_signal(number)
    output, _ = supervisor.communicate(timeout=20)
    assert supervisor.returncode == 0
    assert output.endswith("ended in good order\n")
    assert not is_alive(pids(tmp_path / "web")[0])
    assert not is_alive(pids(tmp_path / "worker")[0])


ORDER = """
import sys
from backend.supervisor import Command, Supervisor

ending = (
    "import signal, sys, time; open(sys.argv[1], 'a').write('started\\\\n');"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(float(sys.argv[3])),"
    " open(sys.argv[1], 'a').write(sys.argv[2] + '\\\\n'), sys.exit(0)));"
    "time.sleep(100)"
)
sys.exit(Supervisor([
    Command(name=name, arguments=(sys.executable, "-c", ending, sys.argv[1], name, delay_s), ends_last=is_last)
    for name, delay_s, is_last in (("embedder", "0", True), ("web", "1", False))
]).run())
"""


def test_what_the_others_need_ends_last(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def lines() -> list[str]:
        return told.read_text().split() if told.exists() else []

    with subprocess.Popen([sys.executable, "-c", ORDER, str(told)]) as supervisor:
        wait_for(lambda: lines() == ["started", "started"])
        time.sleep(0.5)
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    assert lines()[2:] == ["web", "embedder"]


def test_a_process_is_told_who_started_it(tmp_path: Path) -> None:
    script = """
import sys
from backend.supervisor import Command, Supervisor
tells = "import os, sys, time; open(sys.argv[1], 'a').write(os.environ['TANDEM_PARENT']); time.sleep(100)"
Supervisor([Command(name="web", arguments=(sys.executable, "-c", tells, sys.argv[1]))]).run()
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "web")]) as supervisor:
        wait_for(lambda: pids(tmp_path / "web") == [supervisor.pid])
        supervisor.terminate()


def test_a_process_that_would_not_fare_better_ends_them_all(tmp_path: Path) -> None:
    script = """
import sys
from backend.supervisor import CONFIGURATION_STATUS, Command, Supervisor
waits = "import time; time.sleep(100)"
gives_up = f"import sys; open(sys.argv[1], 'a').write('tried '); sys.exit({CONFIGURATION_STATUS})"
sys.exit(Supervisor([
    Command(name=name, arguments=(sys.executable, "-c", code, sys.argv[1]))
    for name, code in (("web", waits), ("worker", gives_up))
]).run())
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "tried")], timeout=30, check=False)
    assert ended.returncode == CONFIGURATION_STATUS
    assert (tmp_path / "tried").read_text() == "tried "
