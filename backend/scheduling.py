"""When jobs start: bursts of events become one job, and pushing leaves Label Studio time for its annotators."""

from __future__ import annotations

from datetime import timedelta

from backend.domain import Job, JobKind, JobStatus, Project, TrainingPolicy
from backend.ports import Clock, Stores

PUSH_REST_FACTOR = 1.0
LONGEST_PUSH_REST = timedelta(minutes=5)
FINETUNE_PAUSE = timedelta(hours=1)


class Scheduler:
    """Queues jobs within the caller's transaction."""

    def __init__(self, clock: Clock, policy: TrainingPolicy) -> None:
        self._clock = clock
        self._policy = policy

    @property
    def longest_wait(self) -> timedelta:
        """How long a burst of events may put off a job."""
        return timedelta(seconds=max(self._policy.quiet_s, self._policy.max_wait_s))

    def soon(self, stores: Stores, project_id: int, kind: JobKind) -> Job:
        """Queue a job for the next quiet moment, at the latest the policy's longest wait after the first call."""
        now = self._clock.now()
        queued = stores.jobs.queued(project_id, kind)
        run_after = self._policy.run_after(now, queued.created_at if queued else None)
        return stores.jobs.enqueue(project_id, kind, run_after, now)

    def now(self, stores: Stores, project_id: int, kind: JobKind) -> Job:
        """Queue a job, or move the queued one, to start at once."""
        now = self._clock.now()
        return stores.jobs.enqueue(project_id, kind, now, now)

    def finetune(self, stores: Stores, project_id: int) -> Job | None:
        """Queue a fine-tuning for the next quiet moment, unless one failed or was cancelled a short while ago."""
        last = stores.jobs.newest(project_id, JobKind.FINETUNE)
        fruitless = last is not None and last.status in (JobStatus.FAILED, JobStatus.CANCELLED)
        if last and fruitless and last.finished_at:
            pause_is_over = not last.finished_at <= self._clock.now() < last.finished_at + FINETUNE_PAUSE
            return self.soon(stores, project_id, JobKind.FINETUNE) if pause_is_over else None
        return self.soon(stores, project_id, JobKind.FINETUNE)

    def replace_invalid(self, stores: Stores, known: Project, told: Project) -> None:
        """Have suggestions pushed anew that a changed label config may not take any more."""
        if known.schema and told.schema and not told.schema.takes(known.schema):
            stores.tasks.forget_pushed(told.id)
            self.push(stores, told.id)

    def push(self, stores: Stores, project_id: int) -> Job:
        """Queue a push that rests first, in proportion to the last one, so that Label Studio is never swamped.

        What to label next is chosen anew after it.
        """
        now = self._clock.now()
        run_after = now
        for job in stores.jobs.all(project_id):
            if job.kind is JobKind.PUSH and job.started_at and job.finished_at and job.finished_at <= now:
                rest = min(PUSH_REST_FACTOR * (job.finished_at - job.started_at), LONGEST_PUSH_REST)
                run_after = max(now, job.finished_at + rest)
                break
        push = stores.jobs.enqueue(project_id, JobKind.PUSH, run_after, now)
        stores.jobs.enqueue(project_id, JobKind.QUERY, run_after, now)
        return push
