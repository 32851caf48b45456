from __future__ import annotations

import os
import subprocess
import sys

import pytest

from backend.adapters.priority import AUTOGROUP

LOWERED = """
import os
from pathlib import Path
from backend.adapters import priority
{before}
priority.lower_priority()
slices = [line.split()[-1] for line in Path("/proc/self/sched").read_text().splitlines() if line.startswith("se.slice")]
print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), *slices, sep=",")
print(os.getsid(0), priority.AUTOGROUP.read_text().strip() if priority.AUTOGROUP.exists() else "")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems know a priority alone")


def lowered(before: str = "") -> list[str]:
    """Return the lines that a process with the lowest priority says about itself."""
    command = [sys.executable, "-c", LOWERED.format(before=before)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def takes_long_turns() -> bool:
    code = "from backend.adapters.priority import _take_long_turns; print(_take_long_turns())"
    return "True" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not takes_long_turns(), reason="this system does not know turns of different lengths")
def test_it_takes_long_turns_that_shorter_ones_interrupt() -> None:
    assert lowered()[0] == f"{os.SCHED_BATCH},19,100000000"


def test_where_turns_have_one_length_it_runs_on_idle_processors() -> None:
    assert lowered("priority._SCHED_SETATTR = {}")[0].startswith(f"{os.SCHED_IDLE},")


@pytest.mark.skipif(
    not (AUTOGROUP.exists() and AUTOGROUP.read_text()), reason="this system does not share processors out by session"
)
def test_it_has_a_session_of_its_own_of_the_least_weight() -> None:
    """Where processors are shared out among sessions, the lowest priority within one would change nothing."""
    session, group = lowered()[1].split(maxsplit=1)
    assert int(session) != os.getsid(0)
    assert group.endswith("nice 19")
