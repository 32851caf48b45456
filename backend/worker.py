"""The worker: claims jobs, runs them under a lease, and writes down what became of them.

Each lane runs one job at a time, so that a minute-long fine-tuning never stands in the way of a head that takes a
second. A lease that is not renewed, because the worker died, puts the job back into the queue.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from backend.domain import INTERRUPTED, Job, JobKind, JobStatus, RetryPolicy, VersionKind
from backend.errors import (
    PASSING_ERRORS,
    EmbedderUnavailable,
    JobCancelled,
    JobFailed,
    JobLost,
    JobProcessDied,
    StoreUnavailable,
    TandemError,
    TrainingImpossible,
)
from backend.heartbeat import LEASE, Heartbeat
from backend.logs import tell_failure
from backend.ports import Clock, Database, Executor, Stores
from backend.processes import is_running
from backend.scheduling import Scheduler
from backend.services.reconciliation import Reconciliation
from backend.services.retention import Retention

log = structlog.get_logger()

DRAIN_S = 15.0
"""How long running jobs have to end, or to notice that they shall, before they are given back as they are."""
SIGNAL_SPREAD_S = 0.5
"""A service manager ends all processes at once; a child may hear of it before its worker."""
JOB_HISTORY = timedelta(days=7)
SYNC_REST_FACTOR = 20.0
RETENTION_INTERVAL_S = 3600.0
MAX_DEATHS = 5
EMBEDDER_ATTEMPTS_FACTOR = 10
EMBEDDER_LONGEST_DELAY_S = 5.0
LONGEST_WAIT = timedelta(minutes=5)
TRAININGS = {JobKind.HEAD: VersionKind.HEAD, JobKind.FINETUNE: VersionKind.FINETUNE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Kinds of jobs that take turns, what runs them, and how often to look for one."""

    kinds: tuple[JobKind, ...]
    executor: Executor
    poll_s: float = 1.0


class Worker:
    """Runs jobs until it is told to stop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        scheduler: Scheduler,
        reconciliation: Reconciliation,
        retention: Retention,
        lanes: Sequence[Lane],
        *,
        sync_interval_s: float,
        job_history: timedelta = JOB_HISTORY,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._clock = clock
        self._scheduler = scheduler
        self._reconciliation = reconciliation
        self._retention = retention
        self._lanes = lanes
        self._sync_interval = timedelta(seconds=sync_interval_s)
        self._job_history = job_history
        self._retry = retry
        # it is on this machine, starts again by itself, and to ask it costs nothing
        self._embedder_retry = replace(
            retry,
            max_attempts=EMBEDDER_ATTEMPTS_FACTOR * retry.max_attempts,
            longest_delay_s=min(retry.longest_delay_s, EMBEDDER_LONGEST_DELAY_S),
        )
        self._stopping = threading.Event()
        self._running: dict[int, Job] = {}
        self.name = f"{socket.gethostname()}-{os.getpid()}"

    def run(self) -> bool:
        """Work until ``stop``: recover, then claim and run.

        Returns:
            Whether everything has ended; else a job still runs in a thread of this process, though it was given back,
            and the process has to end as it is.
        """
        self._recover()
        threads = [
            threading.Thread(target=self._work, args=(lane,), name="-".join(lane.kinds), daemon=True)
            for lane in self._lanes
        ]
        threads.append(threading.Thread(target=self._keep_house, name="house", daemon=True))
        # Not waited for in the end: they may copy gigabytes or await an answer, and leave everything in order.
        threading.Thread(target=self._remove_what_nobody_needs, name="retention", daemon=True).start()
        threading.Thread(target=self._discover, name="discovery", daemon=True).start()
        for thread in threads:
            thread.start()
        while not self._stopping.is_set():
            time.sleep(0.1)
        deadline_s = time.monotonic() + DRAIN_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for job in tuple(self._running.values()):
            log.warning("job given back while it runs", project=job.project_id, job=job.id, kind=job.kind.value)
            self._release(job)
        return not any(thread.is_alive() for thread in threads)

    def stop(self) -> None:
        """Stop claiming, and put running jobs back into the queue, untried."""
        self._stopping.set()

    def _recover(self) -> None:
        """Queue what may have been missed while no worker ran."""
        with self._database.transaction() as stores:
            stores.jobs.prune(self._clock.now() - self._job_history)
            self._take_up(stores)
            for project in stores.projects.all():
                for kind in TRAININGS:
                    self._drop_unjudged(stores, project.id, kind)
                self._scheduler.now(stores, project.id, JobKind.SYNC)
                self._scheduler.now(stores, project.id, JobKind.EMBED)
                self._scheduler.now(stores, project.id, JobKind.HEAD)

    def _take_up(self, stores: Stores) -> None:
        """Queue what workers of this machine left behind when they died, without waiting for their leases to pass."""
        now = self._clock.now()
        for job in stores.jobs.unfinished():
            if job.status is JobStatus.QUEUED:
                self._scheduler.now(stores, job.project_id, job.kind)
            elif job.worker and has_ended(job.worker):
                stores.jobs.requeue(job.id, job.worker, now, "its worker ended without a word")

    def _drop_unjudged(self, stores: Stores, project_id: int, kind: JobKind) -> None:
        """Reject candidates of a kind of training that nobody is about to judge any more."""
        if kind not in TRAININGS or stores.jobs.running(project_id, kind):
            return
        for version in stores.versions.candidates(project_id):
            if version.kind is TRAININGS[kind]:
                stores.versions.reject(project_id, version.name, INTERRUPTED)

    def _work(self, lane: Lane) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    job = self._claim(lane)
                    if job is None:
                        self._stopping.wait(lane.poll_s)
                    else:
                        self._run_job(job, lane.executor)
                except Exception as error:  # noqa: BLE001 - a lane outlives whatever becomes of the database
                    # A job that could not be ended is queued again when its lease passes.
                    tell_failure("no job can be claimed or ended", error)
                    self._stopping.wait(1.0)
        finally:
            lane.executor.close()

    def _claim(self, lane: Lane) -> Job | None:
        with self._database.snapshot() as stores:
            if not stores.jobs.is_due(lane.kinds, self._clock.now()):
                return None
        with self._database.transaction() as stores:
            # Not before: it may have waited for another writer for as long as a lease lasts.
            now = self._clock.now()
            return stores.jobs.claim(lane.kinds, self.name, now, now + LEASE)

    def _run_job(self, job: Job, executor: Executor) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(project=job.project_id, job=job.id, kind=job.kind.value)
        lease = Heartbeat(self._database, self._clock, self.name, job, self._stopping)
        self._running[job.id] = job
        try:
            with lease:
                outcome = executor.run(job, lease.report)
            self._finish(job, JobStatus.SUCCEEDED, outcome)
        except TrainingImpossible as error:
            self._finish(job, JobStatus.SUCCEEDED, str(error))
        except JobLost as error:
            log.warning("job lost", reason=str(error))
        except (TandemError, *PASSING_ERRORS) as error:
            self._conclude(job, error)
        except Exception as error:  # a lane outlives every job
            log.exception("job failed")
            self._finish(job, JobStatus.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._running.pop(job.id, None)

    def _conclude(self, job: Job, error: Exception) -> None:
        """Decide what becomes of a job that an error ended."""
        if self._is_due_to_stop(error):
            self._release(job)
        elif isinstance(error, JobCancelled):
            self._finish(job, JobStatus.CANCELLED, str(error))
        elif isinstance(error, PASSING_ERRORS):
            self._try_again(job, error)
        else:
            log.error("job failed", reason=str(error))
            self._finish(job, JobStatus.FAILED, str(error))

    def _is_due_to_stop(self, error: Exception) -> bool:
        """Tell an error that a job ran into because this worker, and maybe all around it, is being stopped."""
        if isinstance(error, JobFailed | JobProcessDied):
            return self._stopping.wait(SIGNAL_SPREAD_S)
        return self._stopping.is_set() and isinstance(error, (JobCancelled, *PASSING_ERRORS))

    def _try_again(self, job: Job, error: Exception) -> None:
        delay = self._delay_after(error, job)
        log.warning("job failed" if delay is None else "job postponed", reason=str(error), attempts=job.attempts)
        if delay is None:
            self._finish(job, JobStatus.FAILED, str(error))
        else:
            self._requeue(job, delay, str(error))

    def _delay_after(self, error: Exception, job: Job) -> timedelta | None:
        """Return how long to wait before the next try, ``None`` to give up: what kills a child may kill them all."""
        if isinstance(error, JobProcessDied) and job.attempts >= MAX_DEATHS:
            return None
        policy = self._embedder_retry if isinstance(error, EmbedderUnavailable) else self._retry
        return policy.next_delay(job.attempts)

    def _finish(self, job: Job, status: JobStatus, reason: str) -> None:
        log.info("job ended", status=status.value, reason=reason)
        try:
            with self._database.transaction() as stores:
                stores.jobs.finish(job.id, self.name, status, reason, self._clock.now())
                self._drop_unjudged(stores, job.project_id, job.kind)
        except (JobLost, StoreUnavailable) as error:
            # its lease passes, and then it is queued again
            log.warning("job lost", reason=str(error))

    def _requeue(self, job: Job, delay: timedelta, reason: str) -> None:
        try:
            with self._database.transaction() as stores:
                stores.jobs.requeue(job.id, self.name, self._clock.now() + delay, reason)
                self._drop_unjudged(stores, job.project_id, job.kind)
        except (JobLost, StoreUnavailable) as error:
            log.warning("job lost", reason=str(error))

    def _release(self, job: Job) -> None:
        try:
            with self._database.transaction() as stores:
                stores.jobs.release(job.id, self.name, self._clock.now(), "the worker was stopped")
                self._drop_unjudged(stores, job.project_id, job.kind)
        except (JobLost, StoreUnavailable) as error:
            log.warning("job lost", job=job.id, reason=str(error))

    def _discover(self) -> None:
        """Ask Label Studio, until it answers, which projects are connected: slow where there are many."""
        while not self._stopping.is_set():
            try:
                for project in self._reconciliation.discover():
                    log.info("connected project found", project=project.id)
                return
            except Exception as error:  # noqa: BLE001 - reconciliation goes on with the projects that are known
                tell_failure("Label Studio could not be asked for its projects", error)
            self._stopping.wait(self._sync_interval.total_seconds())

    def _remove_what_nobody_needs(self) -> None:
        """Remove versions and features that nobody needs; slow where there are many, so nothing waits for it."""
        while not self._stopping.wait(RETENTION_INTERVAL_S):
            try:
                with self._database.transaction() as stores:
                    stores.jobs.prune(self._clock.now() - self._job_history)
                self._retention.run()
            except Exception as error:  # noqa: BLE001 - nobody else removes it
                tell_failure("what nobody needs cannot be removed", error)

    def _keep_house(self) -> None:
        """Requeue what other workers lost, and reconcile each project from time to time."""
        while not self._stopping.wait(1.0):
            try:
                self._requeue_lost_and_sync(self._clock.now())
            except Exception as error:  # noqa: BLE001 - nobody else keeps it
                tell_failure("house cannot be kept", error)

    def _requeue_lost_and_sync(self, now: datetime) -> None:
        with self._database.transaction() as stores:
            # when the clock has gone back, or another machine's is ahead
            stores.jobs.shorten_waits(now + LEASE, now + max(LONGEST_WAIT, self._scheduler.longest_wait))
            for job in stores.jobs.requeue_expired(now):
                log.warning("lease expired: job queued again", project=job.project_id, job=job.id, kind=job.kind)
                self._drop_unjudged(stores, job.project_id, job.kind)
            for project in stores.projects.all():
                waits = stores.jobs.queued(project.id, JobKind.SYNC)
                if waits is None and self._sync_is_due(stores.jobs.newest(project.id, JobKind.SYNC), now):
                    self._scheduler.now(stores, project.id, JobKind.SYNC)

    def _sync_is_due(self, last: Job | None, now: datetime) -> bool:
        """Tell whether the last reconciliation is long ago, also by the time it took: it costs Label Studio much."""
        if last is None or last.finished_at is None:
            return last is None
        # one that never started was cancelled, or merged into another
        took = last.finished_at - (last.started_at or last.finished_at)
        rest = max(self._sync_interval, SYNC_REST_FACTOR * took)
        # one that will have ended is none to go by: the clock has gone back
        return not last.finished_at <= now <= last.finished_at + rest


def has_ended(worker: str) -> bool:
    """Tell whether a worker that still holds jobs ran on this machine, and is gone; call it before claiming any."""
    host, _, process_id = worker.rpartition("-")
    if host != socket.gethostname() or not process_id.isdecimal():
        return False
    # in a container each process has the id of the one before it
    return int(process_id) == os.getpid() or not is_running(int(process_id))
