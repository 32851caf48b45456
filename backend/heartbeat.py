"""A job's lease is kept while the job runs: who does not renew it is taken for dead."""

from __future__ import annotations

import threading
from datetime import timedelta

import structlog

from backend.domain import Job, Progress
from backend.errors import JobCancelled, JobLost
from backend.logs import in_this_context, tell_failure
from backend.ports import Clock, Database

log = structlog.get_logger()

LEASE = timedelta(seconds=30)
HEARTBEAT_BEATS = 5


class Heartbeat:
    """Keeps a job's lease while it runs, and carries its progress out and the wish to cancel in."""

    def __init__(self, database: Database, clock: Clock, worker: str, job: Job, stopping: threading.Event) -> None:
        self._database = database
        self._clock = clock
        self._worker = worker
        self._job = job
        self._stopping = stopping
        self._progress = job.progress
        self._ended = threading.Event()
        self._cancelled = False
        self._lost: JobLost | None = None
        self._thread = threading.Thread(target=in_this_context(self._beat), name=f"lease-{job.id}")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, progress: Progress) -> None:
        """Take note of progress.

        Raises:
            JobCancelled: somebody cancelled the job, or the worker is stopping.
            JobLost: another worker has it now.
        """
        self._progress = progress
        if self._lost:
            raise self._lost
        if self._cancelled:
            raise JobCancelled("cancelled on request")
        if self._stopping.is_set():
            raise JobCancelled("the worker is stopping")

    def _beat(self) -> None:
        written = self._progress
        beats = 0
        while not self._ended.wait(1.0):
            beats += 1
            try:
                if self._progress != written or beats % HEARTBEAT_BEATS == 0:
                    written = self._progress
                    with self._database.transaction() as stores:
                        job = stores.jobs.renew(self._job.id, self._worker, self._clock.now() + LEASE, written)
                else:
                    with self._database.snapshot() as stores:
                        job = stores.jobs.get(self._job.id)
                self._cancelled = job.cancel_requested
            except JobLost as error:
                self._lost = error
                return
            except Exception as error:  # noqa: BLE001 - without it the job would be run twice
                tell_failure("lease not renewed", error)
