"""Running jobs: in the calling thread, or in a fresh interpreter whose memory and crashes end with it.

A child process is started with exec, never forked: torch hangs in a fork of a process that has used it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO

import structlog
from pydantic import BaseModel, ValidationError

from backend.domain import Job, JobKind, Progress
from backend.errors import JobFailed, JobInterrupted, JobProcessDied, TrainingImpossible
from backend.ports import ReportProgress
from backend.processes import for_child

log = structlog.get_logger()

Handler = Callable[[int, ReportProgress], str]
"""Runs one kind of job for a project and returns its outcome in words."""

POLL_S = 0.5
GRACE_S = 5.0


class ThreadExecutor:
    """Runs jobs in the calling thread: for work that waits for others most of the time."""

    def __init__(self, handlers: Mapping[JobKind, Handler]) -> None:
        self._handlers = handlers

    def run(self, job: Job, report: ReportProgress) -> str:
        """Run a job to its end."""
        return self._handlers[job.kind](job.project_id, report)

    def close(self) -> None:
        """Nothing outlives a call."""


class JobMessage(BaseModel):
    """One line from a child process: progress, or the outcome."""

    done: int = 0
    total: int = 0
    unit: str = ""
    outcome: str | None = None
    impossible: str | None = None
    interruption: str | None = None
    failure: str | None = None


class ProcessExecutor:
    """Runs jobs one at a time in a child process.

    ``keep_warm`` keeps the child for the next job, which then starts within milliseconds.
    """

    def __init__(self, *, keep_warm: bool, environment: Mapping[str, str] | None = None) -> None:
        self._keep_warm = keep_warm
        self._environment = environment
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def warm_up(self) -> None:
        """Start the child before there is a job for it."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = self._start()

    def run(self, job: Job, report: ReportProgress) -> str:
        """Run a job to its end; whatever ``report`` raises ends the child."""
        self.warm_up()
        finished = False
        try:
            outcome = self._converse(job, report)
            finished = True
            return outcome
        except (TrainingImpossible, JobInterrupted):
            finished = True
            raise
        finally:
            if not (finished and self._keep_warm):
                self.close()

    def close(self) -> None:
        """End the child, the hard way if it does not listen."""
        child, self._child = self._child, None
        if child is None:
            return
        with child:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    child.kill()

    def _start(self) -> subprocess.Popen[str]:
        inherited = os.environ  # noqa: TID251 - handed on to a child
        child = subprocess.Popen(
            [sys.executable, "-m", "backend.job_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=for_child(inherited if self._environment is None else self._environment),
        )
        self._lines = queue.Queue()
        threading.Thread(target=_read_lines, args=(child.stdout, self._lines), daemon=True).start()
        return child

    def _converse(self, job: Job, report: ReportProgress) -> str:
        child = self._child
        if child is None or child.stdin is None:
            raise JobFailed("the child process could not be started")
        request = {"job_id": job.id, "kind": job.kind.value, "project_id": job.project_id}
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        except BrokenPipeError as error:
            raise self._obituary(child) from error
        progress = Progress()
        while True:
            report(progress)
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                raise self._obituary(child)
            message = _parse(line)
            if message.outcome is not None:
                return message.outcome
            if message.impossible is not None:
                raise TrainingImpossible(message.impossible)
            if message.interruption is not None:
                raise JobInterrupted(message.interruption)
            if message.failure is not None:
                raise JobFailed(message.failure)
            progress = Progress(done=message.done, total=message.total, unit=message.unit)

    def _obituary(self, child: subprocess.Popen[str]) -> JobFailed | JobProcessDied:
        status = child.wait(GRACE_S)
        if status == -signal.SIGKILL:
            return JobProcessDied("the child process was killed (signal 9): out of memory, or by somebody")
        if status == -signal.SIGTERM:
            return JobProcessDied("the child process was told to end (signal 15) by somebody")
        return JobFailed(f"the child process ended with status {status}: its last log lines say why")


def _read_lines(stream: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    for line in stream or ():
        lines.put(line)
    lines.put(None)


def _parse(line: str) -> JobMessage:
    try:
        return JobMessage.model_validate_json(line)
    except ValidationError as error:
        raise JobFailed(f"the child process said something that is no message: {line[:200]!r}") from error
