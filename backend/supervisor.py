"""Several processes as one: started together, started again when one dies, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

log = structlog.get_logger()

GRACE_S = 25.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to keep running; ``environment`` is added to this one's."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Keeps processes running until this one is told to end."""

    def __init__(self, commands: Sequence[Command], environment: Mapping[str, str] | None = None) -> None:
        self._commands = commands
        self._environment = environment or {}
        self._stopping = threading.Event()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then end the processes and return."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        threads = [threading.Thread(target=self._keep, args=(command,)) for command in self._commands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _stop(self, number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        self._stopping.set()

    def _keep(self, command: Command) -> None:
        """Start a process again and again, more slowly the shorter it lives."""
        environment = {**os.environ, **self._environment, **command.environment}  # noqa: TID251 - handed on to a child
        pause_s = 0.5
        while not self._stopping.is_set():
            started_s = time.monotonic()
            # a session of its own: Ctrl-C reaches the supervisor only, which then ends all in good order
            with subprocess.Popen(command.arguments, env=environment, start_new_session=True) as child:
                while child.poll() is None and not self._stopping.wait(0.2):
                    pass
                if child.poll() is None:
                    _end(child)
                    return
            lived_s = time.monotonic() - started_s
            pause_s = 0.5 if lived_s > LONGEST_PAUSE_S else min(LONGEST_PAUSE_S, 2 * pause_s)
            log.error("process ended and is started again", name=command.name, status=child.returncode, pause_s=pause_s)
            self._stopping.wait(pause_s)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        log.warning("process did not end in time and is killed", pid=child.pid)
        child.kill()
