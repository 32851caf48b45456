"""Python imports this before anything else in every process of a Tandem under chaos, because it is on PYTHONPATH.

The file that ``TANDEM_CHAOS`` names says how many seconds the clock is off, and how often a process is killed, as
``kill -9`` does it, right before or after it makes something durable or visible: the moments that matter most. What
dead processes left is cleared away after seconds, not after an hour. Images that end with an order are obeyed by
whoever decodes them; that file says how long it may take.
"""

import ctypes
import dataclasses
import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
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


def spin():
    while True:
        pass


def hoard():
    """Take a gigabyte, which is more than the tests' limits allow."""
    return [bytearray(2**20) for _ in range(2**10)]


def be_killed_once(witness):
    """Be killed by somebody, unless it has happened before."""
    if not Path(witness).exists():
        Path(witness).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def corrupt():
    """Leave this process in a state in which the next image, whichever it is, will crash it."""
    ORDERS[b""] = ORDERS[b"crash"]


ORDERS = {
    b"crash": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"exit": lambda: os._exit(7),
    b"sleep": lambda: time.sleep(10**6),
    b"spin": spin,
    b"hoard": hoard,
    b"fail": lambda: 1 / 0,
    b"corrupt": corrupt,
    b"be killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def obey_images(module):
    real = module._decode

    def decode(source, *arguments):
        order = Path(source).read_bytes().partition(b"tandem-chaos:")[2] if Path(source).exists() else b""
        what, _, argument = order.partition(b" once ")
        if argument:
            be_killed_once(os.fsdecode(argument))
        elif what in ORDERS:
            ORDERS[what]()
        return real(source, *arguments)

    module._decode = decode


def limit_decoding(module):
    known = {name: value for name, value in control().items() if name in ("processor_s", "clock_s")}
    module.TIME_LIMITS = module.TimeLimits(**known)


def hurry_finetuning(module):
    """Let a fine-tuning take seconds."""
    real = module.TrainingConfig.for_labels.__func__

    def for_labels(cls, *arguments, **options):
        return dataclasses.replace(real(cls, *arguments, **options), epochs=2)

    module.TrainingConfig.for_labels = classmethod(for_labels)


def keep_priority(module):
    """Let a fine-tuning end, however busy the machine is."""
    module.lower_priority = lambda: None


CHANGES = {
    "backend.adapters.priority": keep_priority,
    "model.training": hurry_finetuning,
    "model.image_files": obey_images,
    "model.decoding": limit_decoding,
    "backend.bootstrap.adapters": move_clock,
    "backend.worker": hurry_retention,
}


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
