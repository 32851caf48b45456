"""Making a process wait for everything else on its machine."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path

LEAST_PRIORITY = 19
LONGEST_TURN_NS = 100_000_000
AUTOGROUP = Path("/proc/self/autogroup")

# Python and the C libraries in use know neither call; numbers and layout: syscall(2), sched_setattr(2).
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_ATTRIBUTES = struct.Struct("IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def lower_priority() -> None:
    """Let everything else on the machine go first, where the system knows how to.

    Linux may share processors out among sessions first, and look at priorities within a session only (autogroup, see
    sched(7)): so this process gets a session of its own, of the least weight.
    """
    if not _take_long_turns():
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except (AttributeError, OSError):
            os.nice(LEAST_PRIORITY)
    if AUTOGROUP.exists():
        with suppress(OSError):
            os.setsid()
            AUTOGROUP.write_text(str(LEAST_PRIORITY))


def _take_long_turns() -> bool:
    """Ask for seldom and long turns, and return whether the system grants them.

    From Linux 6.12 on, whoever wakes up and asked for a shorter turn interrupts a longer one at once; of other turns,
    even of those with the policy for idle processors, it first waits out some milliseconds.
    """
    machine = platform.machine()
    if machine not in _SCHED_SETATTR:
        return False
    libc = ctypes.CDLL(None)
    asked = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_BATCH, 0, LEAST_PRIORITY, 0, LONGEST_TURN_NS, 0, 0)
    granted = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if libc.syscall(_SCHED_SETATTR[machine], 0, asked, 0):
        return False
    if libc.syscall(_SCHED_GETATTR[machine], 0, granted, _ATTRIBUTES.size, 0):
        return False
    return int(_ATTRIBUTES.unpack(granted.raw)[5]) == LONGEST_TURN_NS
