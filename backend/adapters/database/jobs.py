"""Jobs in SQL: rows that are claimed, leased, renewed and finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Row, Update, bindparam, delete, insert, literal_column, select, update

from backend.adapters.database import statements
from backend.adapters.database.tables import job_table, job_tally_table
from backend.domain import JOB_DURATION_BOUNDS_S, Job, JobKind, JobStatus, JobTally, Progress
from backend.errors import JobLost, NotFound

FINAL_STATUSES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class SqlJobStore:
    """Jobs on one connection; see ``backend.ports.JobStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def enqueue(self, project_id: int, kind: JobKind, run_after: datetime, now: datetime) -> Job:
        """Queue a job, or move the one already queued to ``run_after``; return it."""
        already = self.queued(project_id, kind)
        if already is not None:
            moved = self._connection.execute(_MOVE, {"of_job": already.id, "to": run_after})
            return _job(moved.one())
        statement = insert(job_table).values(
            project_id=project_id,
            kind=kind,
            status=JobStatus.QUEUED,
            created_at=now,
            run_after=run_after,
            attempts=0,
            cancel_requested=False,
            progress=asdict(Progress()),
        )
        return _job(self._connection.execute(statement.returning(*job_table.c)).one())

    def queued(self, project_id: int, kind: JobKind) -> Job | None:
        """Return the queued job of this kind, if any."""
        row = self._connection.execute(_QUEUED, {"project_id": project_id, "kind": kind}).one_or_none()
        return None if row is None else _job(row)

    def claim(self, kinds: Sequence[JobKind], worker: str, now: datetime, lease_until: datetime) -> Job | None:
        """Take the queued job that has waited longest past its ``run_after``; ``None`` when none is due.

        A job whose project already runs one of the same kind is not due. Counts an attempt.
        """
        due = self._connection.execute(_DUE, {"kinds": list(kinds), "now": now}).one_or_none()
        if due is None:
            return None
        return self._change(
            due.id,
            status=JobStatus.RUNNING,
            worker=worker,
            started_at=now,
            lease_until=lease_until,
            attempts=due.attempts + 1,
            progress=asdict(Progress()),
        )

    def is_due(self, kinds: Sequence[JobKind], now: datetime) -> bool:
        """Tell whether there is a job to claim, without keeping writers waiting."""
        return self._connection.execute(_DUE, {"kinds": list(kinds), "now": now}).first() is not None

    def renew(self, job_id: int, worker: str, lease_until: datetime, progress: Progress | None) -> Job:
        """Extend the lease, store the progress and return the job, with ``cancel_requested`` as it now is.

        Raises:
            JobLost: the job is no longer this worker's.
        """
        held = self._held(job_id, worker)
        return self._change(held.id, lease_until=lease_until, progress=asdict(progress or held.progress))

    def finish(self, job_id: int, worker: str, status: JobStatus, reason: str | None, now: datetime) -> None:
        """Store the outcome.

        Raises:
            JobLost: the job is no longer this worker's.
        """
        if status not in FINAL_STATUSES:
            raise ValueError(f"a job cannot finish as {status}: use one of {', '.join(FINAL_STATUSES)}")
        held = self._held(job_id, worker)
        self._change(held.id, status=status, reason=reason, finished_at=now, lease_until=None)
        self._tally(held, status, now)

    def requeue(self, job_id: int, worker: str, run_after: datetime, reason: str | None) -> None:
        """Put a running job back into the queue, merging it with one queued meanwhile; keeps its attempts.

        See ``_put_back`` for what merging means and for jobs that should be cancelled.

        Raises:
            JobLost: the job is no longer this worker's.
        """
        self._put_back(self._held(job_id, worker), run_after, reason)

    def shorten_waits(self, latest_lease: datetime, latest_start: datetime) -> None:
        """Let no lease and no wait of a queued job reach further than that: the clock has gone back since."""
        running = update(job_table).where(_IS_RUNNING)
        self._connection.execute(running.where(job_table.c.lease_until > latest_lease).values(lease_until=latest_lease))
        queued = update(job_table).where(_IS_QUEUED)
        self._connection.execute(queued.where(job_table.c.run_after > latest_start).values(run_after=latest_start))

    def release(self, job_id: int, worker: str, now: datetime, reason: str | None) -> None:
        """Put a running job back into the queue as if it had never been claimed: the attempt does not count.

        See ``_put_back`` for what merging means and for jobs that should be cancelled.

        Raises:
            JobLost: the job is no longer this worker's.
        """
        held = self._held(job_id, worker)
        self._put_back(replace(held, attempts=max(0, held.attempts - 1)), now, reason)

    def requeue_expired(self, now: datetime) -> list[Job]:
        """Put running jobs whose lease has passed back into the queue and return those that are queued again."""
        expired = self._connection.execute(select(job_table).where(_IS_RUNNING, job_table.c.lease_until <= now)).all()
        put_back = [
            self._put_back(_job(row), now, f"worker {row.worker} stopped renewing its lease") for row in expired
        ]
        return [each for each in put_back if each.status is JobStatus.QUEUED]

    def cancel(self, job_id: int, now: datetime) -> Job:
        """Cancel a queued job at once, ask a running one to stop; finished ones stay as they are.

        Raises:
            NotFound: there is no such job.
        """
        found = self.get(job_id)
        if found.status is JobStatus.QUEUED:
            return self._change(job_id, status=JobStatus.CANCELLED, finished_at=now, reason="cancelled before it ran")
        if found.status is JobStatus.RUNNING:
            return self._change(job_id, cancel_requested=True)
        return found

    def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFound: there is no such job.
        """
        row = self._connection.execute(select(job_table).where(job_table.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no job {job_id}: it never was, or it finished long ago and was cleared away")
        return _job(row)

    def all(self, project_id: int, limit: int = 100) -> list[Job]:
        """Return a project's newest jobs, newest first, and then those that have not ended for longer than that."""
        statement = (
            select(job_table).where(job_table.c.project_id == project_id).order_by(job_table.c.id.desc()).limit(limit)
        )
        newest = [_job(row) for row in self._connection.execute(statement)]
        known = {job.id for job in newest}
        older = [job for job in self.unfinished() if job.project_id == project_id and job.id not in known]
        return newest + older[::-1]

    def running(self, project_id: int, kind: JobKind) -> Job | None:
        """Return the running job of this kind, if any."""
        row = self._connection.execute(_RUNNING_OF, {"project_id": project_id, "kind": kind}).one_or_none()
        return None if row is None else _job(row)

    def newest(self, project_id: int, kind: JobKind) -> Job | None:
        """Return a project's newest job of a kind, if any."""
        row = self._connection.execute(_NEWEST, {"project_id": project_id, "kind": kind}).one_or_none()
        return None if row is None else _job(row)

    def unfinished(self) -> list[Job]:
        """Return the queued and running jobs of all projects, by id."""
        unfinished = [
            _job(row)
            for is_unfinished in (_IS_QUEUED, _IS_RUNNING)
            for row in self._connection.execute(select(job_table).where(is_unfinished))
        ]
        return sorted(unfinished, key=lambda job: job.id)

    def tallies(self) -> list[JobTally]:
        """Return how many jobs ended how, and after how long, since the database was made."""
        statement = select(job_tally_table).order_by(*job_tally_table.primary_key)
        return [
            JobTally(
                kind=JobKind(row.kind),
                status=JobStatus(row.status),
                bound_s=row.bound_s,
                n_jobs=row.n_jobs,
                total_s=row.total_s,
            )
            for row in self._connection.execute(statement)
        ]

    def prune(self, finished_before: datetime) -> int:
        """Delete final jobs that finished before a moment; return how many."""
        statement = delete(job_table).where(
            job_table.c.status.in_(FINAL_STATUSES), job_table.c.finished_at < finished_before
        )
        return self._connection.execute(statement).rowcount

    def _held(self, job_id: int, worker: str) -> Job:
        row = self._connection.execute(
            select(job_table).where(
                job_table.c.id == job_id, job_table.c.worker == worker, job_table.c.status == JobStatus.RUNNING
            )
        ).one_or_none()
        if row is None:
            raise JobLost(f"job {job_id} is no longer run by worker {worker}: stop working on it")
        return _job(row)

    def _put_back(self, held: Job, run_after: datetime, reason: str | None) -> Job:
        """Queue a running job again, or cancel it where somebody asked for that.

        Of two jobs for the same work the older one stays, with its attempts, and starts when the first of them
        would have; the younger one counts as cancelled from the moment it was made.
        """
        if held.cancel_requested:
            return self._change(
                held.id, status=JobStatus.CANCELLED, finished_at=run_after, lease_until=None, reason="cancelled"
            )
        younger = self.queued(held.project_id, held.kind)
        if younger is not None:
            self._change(
                younger.id,
                status=JobStatus.CANCELLED,
                finished_at=younger.created_at,
                reason=f"merged into job {held.id}, which is queued again",
            )
            run_after = min(run_after, younger.run_after)
        return self._change(
            held.id,
            status=JobStatus.QUEUED,
            run_after=run_after,
            attempts=held.attempts,
            reason=reason,
            worker=None,
            started_at=None,
            lease_until=None,
        )

    def _tally(self, held: Job, status: JobStatus, now: datetime) -> None:
        duration_s = max(0.0, (now - (held.started_at or now)).total_seconds())
        bound_s = next(bound_s for bound_s in JOB_DURATION_BOUNDS_S if duration_s <= bound_s)
        one = {"kind": held.kind, "status": status, "bound_s": bound_s, "n_jobs": 1, "total_s": duration_s}
        self._connection.execute(_tallying(self._connection.dialect.name), one)

    def _change(self, job_id: int, **columns: Any) -> Job:
        changed: Update = update(job_table).where(job_table.c.id == job_id).values(columns)
        return _job(self._connection.execute(changed.returning(*job_table.c)).one())


@cache
def _tallying(dialect: str) -> Insert:
    statement = statements.insert(dialect, job_tally_table)
    return statement.on_conflict_do_update(
        index_elements=list(job_tally_table.primary_key),
        set_={
            "n_jobs": job_tally_table.c.n_jobs + statement.excluded.n_jobs,
            "total_s": job_tally_table.c.total_s + statement.excluded.total_s,
        },
    )


# Spelt out, for SQLite to see that a partial index holds them all: ended jobs are many more.
_IS_QUEUED = job_table.c.status == literal_column(f"'{JobStatus.QUEUED}'")
_IS_RUNNING = job_table.c.status == literal_column(f"'{JobStatus.RUNNING}'")
_OF_A_KIND = select(job_table).where(
    job_table.c.project_id == bindparam("project_id"), job_table.c.kind == bindparam("kind")
)
# What every event executes: to put a statement together takes longer than to execute it.
_QUEUED = _OF_A_KIND.where(_IS_QUEUED)
_RUNNING_OF = _OF_A_KIND.where(_IS_RUNNING)
_NEWEST = _OF_A_KIND.order_by(job_table.c.id.desc()).limit(1)


_MOVE = (
    update(job_table)
    .where(job_table.c.id == bindparam("of_job"))
    .values(run_after=bindparam("to"))
    .returning(*job_table.c)
)


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        project_id=row.project_id,
        kind=JobKind(row.kind),
        status=JobStatus(row.status),
        created_at=row.created_at,
        run_after=row.run_after,
        started_at=row.started_at,
        finished_at=row.finished_at,
        lease_until=row.lease_until,
        worker=row.worker,
        attempts=row.attempts,
        cancel_requested=row.cancel_requested,
        progress=Progress(**row.progress),
        reason=row.reason,
    )


_RUNNING = job_table.alias("running")

# Workers ask several times a second, mostly in vain.
_DUE = (
    select(job_table)
    .where(
        _IS_QUEUED,
        job_table.c.kind.in_(bindparam("kinds", expanding=True)),
        job_table.c.run_after <= bindparam("now"),
        ~select(_RUNNING.c.id)
        .where(
            _RUNNING.c.project_id == job_table.c.project_id,
            _RUNNING.c.kind == job_table.c.kind,
            _RUNNING.c.status == literal_column(f"'{JobStatus.RUNNING}'"),
        )
        .exists(),
    )
    .order_by(job_table.c.run_after, job_table.c.id)
    .limit(1)
)
