"""Background work, and when it is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class JobKind(StrEnum):
    """What a job does; the value is what the API shows."""

    SYNC = "sync"
    EMBED = "embed"
    HEAD = "head"
    FINETUNE = "finetune"
    PUSH = "push"
    QUERY = "query"


class JobStatus(StrEnum):
    """Where a job is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of background work for one project; at most one queued and one running per project and kind."""

    id: int
    project_id: int
    kind: JobKind
    status: JobStatus
    created_at: datetime
    run_after: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_until: datetime | None = None
    worker: str | None = None
    attempts: int = 0
    cancel_requested: bool = False
    progress: Progress = Progress()
    reason: str | None = None

    def eta_s(self, now: datetime) -> float | None:
        """Return the seconds left at the pace so far, or ``None`` while nothing can be said."""
        if self.status is not JobStatus.RUNNING or self.started_at is None or not self.progress.done:
            return None
        elapsed_s = (now - self.started_at).total_seconds()
        return elapsed_s * max(0, self.progress.total - self.progress.done) / self.progress.done


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a job is tried again after an error that may pass."""

    max_attempts: int = 12
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0

    def next_delay(self, attempts: int) -> timedelta | None:
        """Return how long to wait after ``attempts`` tries, doubling up to a limit, or ``None`` to give up."""
        if attempts >= self.max_attempts:
            return None
        return timedelta(seconds=min(self.longest_delay_s, self.first_delay_s * 2 ** (attempts - 1)))


JOB_DURATION_BOUNDS_S = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTally:
    """How many jobs of a kind ended in a status after at most ``bound_s``, and more than the bound before.

    Tallies only grow, whatever becomes of the jobs they counted; ``total_s`` is the time these jobs ran.
    """

    kind: JobKind
    status: JobStatus
    bound_s: float
    n_jobs: int
    total_s: float
