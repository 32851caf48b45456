"""A server that outlives the program that started it, and can be found and stopped later.

The child holds a lock on its pid file for as long as it lives, so a pid is never trusted on its own: the
system may have given it to a stranger.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import TandemError

LOG_TAIL_LINES = 30
POLL_S = 0.1


class ServerFailed(TandemError):
    """A server ended while starting, or did not become healthy in time; the message holds the end of its log."""


@dataclass(slots=True, kw_only=True)
class BackgroundProcess:
    """One detached process: ``<name>.pid`` and ``<name>.log`` in ``folder`` are all there is to know about it."""

    folder: Path
    name: str
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid_file(self) -> Path:
        """Where the process id is; locked by the process itself."""
        return self.folder / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        """Where everything goes that the process prints."""
        return self.folder / f"{self.name}.log"

    @property
    def is_running(self) -> bool:
        """Whether the process lives, whoever started it."""
        if not self.pid_file.exists():
            return False
        with self.pid_file.open() as pid_file:
            try:
                fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start ``command`` in a session of its own, with exactly this environment.

        Raises:
            ServerFailed: when it runs already, or the program is missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open("a+") as pid_file, self.log_file.open("ab") as log:
            try:
                fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerFailed(f"{self.name} runs already: its pid is in {self.pid_file}") from None
            if self._child is not None:
                self._child.wait()
            try:
                self._child = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(pid_file.fileno(),),
                )
            except OSError as error:
                raise ServerFailed(f"{self.name} cannot be started: {error}") from error
            pid_file.truncate(0)
            pid_file.write(f"{self._child.pid}\n")

    def check_alive(self) -> None:
        """Make sure that the process still lives.

        Raises:
            ServerFailed: with the end of the log.
        """
        if self._child is not None:
            self._child.poll()
        if not self.is_running:
            raise ServerFailed(f"{self.name} ended by itself. {self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the log, introduced by its path."""
        if not self.log_file.exists():
            return f"There is no log at {self.log_file}."
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n    ".join([f"The end of {self.log_file}:", *lines])

    def stop(self, *, patience_s: float = 20.0) -> bool:
        """End the process and its children, gently first; return whether there was one."""
        if not self.is_running:
            return False
        group = int(self.pid_file.read_text())
        for sent, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(group, sent)
            except ProcessLookupError:
                break
            if self._wait_for_end(wait_s):
                break
        self.pid_file.unlink(missing_ok=True)
        return True

    def _wait_for_end(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._child is not None:
                self._child.poll()
            if not self.is_running:
                return True
            time.sleep(POLL_S)
        return False


def free_port(host: str = "127.0.0.1", preferred: int | None = None) -> int:
    """Return ``preferred`` where nobody listens on it yet, else a port that the system gives."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise ServerFailed(f"no free port on {host}")
