"""Several processes as one: started together, started again when one dies, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import structlog

from backend.errors import ConfigurationError
from backend.processes import for_child

log = structlog.get_logger()

GRACE_S = 22.0
LAST_GRACE_S = 3.0
LONGEST_PAUSE_S = 30.0
CONFIGURATION_STATUS = 2
"""What a process exits with that would not fare better the next time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to keep running; ``environment`` is added to this one's.

    One that ``ends_last`` is needed by the others until they have ended.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ends_last: bool = False


class Supervisor:
    """Keeps processes running until this one is told to end."""

    def __init__(self, commands: Sequence[Command], environment: Mapping[str, str] | None = None) -> None:
        self._commands = commands
        self._environment = environment or {}
        self._stopping = threading.Event()
        self._others_ended = threading.Event()
        self._status = 0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, then end the processes, within ``GRACE_S`` and ``LAST_GRACE_S``.

        Returns:
            0; or ``CONFIGURATION_STATUS`` where a process ended with that, which ends them all.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        threads = [(each, threading.Thread(target=self._keep, args=(each,))) for each in self._commands]
        for _, thread in threads:
            thread.start()
        for command, thread in threads:
            if not command.ends_last:
                thread.join()
        self._others_ended.set()
        for _, thread in threads:
            thread.join()
        return self._status

    def _stop(self, number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        self._stopping.set()

    def _keep(self, command: Command) -> None:
        """Start a process again and again, more slowly the shorter it lives."""
        inherited = os.environ  # noqa: TID251 - handed on to a child
        environment = for_child({**inherited, **self._environment, **command.environment})
        pause_s = 0.5
        stopping = self._others_ended if command.ends_last else self._stopping
        while not stopping.is_set():
            started_s = time.monotonic()
            status: int | str
            try:
                status = self._run_once(command, environment, stopping)
            except OSError as error:  # there is no memory or no process id left, or its program is being replaced
                status = f"not started: {error}"
            if stopping.is_set():
                return
            if status == CONFIGURATION_STATUS:
                self._status = CONFIGURATION_STATUS
                self._stopping.set()
                return
            lived_s = time.monotonic() - started_s
            pause_s = 0.5 if lived_s > LONGEST_PAUSE_S else min(LONGEST_PAUSE_S, 2 * pause_s)
            log.error("process ended and is started again", name=command.name, status=status, pause_s=pause_s)
            stopping.wait(pause_s)

    def _run_once(self, command: Command, environment: Mapping[str, str], stopping: threading.Event) -> int:
        """Start a process, wait until it ends or is to be ended, and return its status."""
        # a session of its own: Ctrl-C reaches the supervisor only, which then ends all in good order
        # what is inheritable is handed on: the lock on what it counts into
        with subprocess.Popen(command.arguments, env=environment, start_new_session=True, close_fds=False) as child:
            while child.poll() is None and not stopping.wait(0.2):
                pass
            if child.poll() is None:
                _end(child, LAST_GRACE_S if command.ends_last else GRACE_S)
        return child.returncode


@contextmanager
def wrong_settings_told() -> Iterator[None]:
    """Make one line of settings that do not work, and end with the status that says so to a supervisor."""
    try:
        yield
    except ConfigurationError as error:
        log.error("cannot start", reason=str(error))
        sys.exit(CONFIGURATION_STATUS)


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        log.warning("process did not end in time and is killed", pid=child.pid)
        child.kill()
