"""Python imports this before anything else in every process of a Tandem under chaos, because it is on PYTHONPATH.

The file that ``TANDEM_CHAOS`` names says how many seconds the clock is off, and how often a process is killed, as
``kill -9`` does it, right before or after it makes something durable or visible: the moments that matter most. What
dead processes left is cleared away after seconds, not after an hour.
"""

import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
from datetime import timedelta
from pathlib import Path

CONTROL = Path(os.environ["TANDEM_CHAOS"])  # noqa: TID251 - no setting of Tandem
REAL = {name: getattr(os, name) for name in ("fsync", "fdatasync", "rename", "replace", "mkdir", "unlink", "rmdir")}


def control():
    try:
        return json.loads(CONTROL.read_bytes())
    except (OSError, ValueError):
        return {}


def perhaps_die(name):
    if random.random() < control().get("crash_share", 0.0):
        process = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        (CONTROL.parent / f"crash-{os.getpid()}-{name}").write_text(process)
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(name):
    def call(*arguments, **options):
        perhaps_die(f"before-{name}")
        result = REAL[name](*arguments, **options)
        perhaps_die(f"after-{name}")
        return result

    return call


def move_clock(module):
    real = module.SystemClock.now
    module.SystemClock.now = lambda self: real(self) + timedelta(seconds=control().get("clock_offset_s", 0.0))


def hurry_retention(module):
    module.RETENTION_INTERVAL_S = 2.0


CHANGES = {"backend.bootstrap.adapters": move_clock, "backend.worker": hurry_retention}


class Changed(importlib.abc.MetaPathFinder):
    """Changes modules right after they are loaded."""

    def find_spec(self, fullname, path, target=None):  # noqa: ARG002 - given by Python
        if fullname not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            CHANGES[fullname](module)

        spec.loader.exec_module = exec_module
        return spec


for each in REAL:
    setattr(os, each, deadly(each))
sys.meta_path.insert(0, Changed())
