"""What the job store promises, whichever database holds it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from backend.adapters.database import SqlDatabase
from backend.adapters.database.tables import job_table
from backend.domain import Job, JobKind, JobStatus, Progress, ProjectIdentity
from backend.errors import JobLost, NotFound
from backend.ports import Database

NOON = datetime(2026, 5, 17, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FINAL = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}

pytestmark = pytest.mark.usefixtures("project")


def enqueue(database: Database, kind: JobKind = JobKind.HEAD, run_after: datetime = NOON, project_id: int = 5) -> Job:
    with database.transaction() as stores:
        return stores.jobs.enqueue(project_id, kind, run_after, NOON)


def claim(
    database: Database, worker: str = "w1", now: datetime = NOON, kinds: tuple[JobKind, ...] = tuple(JobKind)
) -> Job | None:
    with database.snapshot() as stores:
        is_due = stores.jobs.is_due(kinds, now)
    with database.transaction() as stores:
        job = stores.jobs.claim(kinds, worker, now, now + 30 * SECOND)
    assert is_due == (job is not None)
    return job


def claimed(database: Database, worker: str = "w1", now: datetime = NOON) -> Job:
    job = claim(database, worker, now)
    assert job is not None
    return job


def get(database: Database, job_id: int) -> Job:
    with database.snapshot() as stores:
        return stores.jobs.get(job_id)


class TestQueue:
    def test_a_new_job_is_queued(self, database: Database) -> None:
        made = enqueue(database, run_after=NOON + SECOND)
        assert made == Job(
            id=made.id,
            project_id=5,
            kind=JobKind.HEAD,
            status=JobStatus.QUEUED,
            created_at=NOON,
            run_after=NOON + SECOND,
        )
        assert get(database, made.id) == made

    def test_a_second_one_moves_the_first(self, database: Database) -> None:
        first = enqueue(database)
        moved = enqueue(database, run_after=NOON + 5 * SECOND)
        assert (moved.id, moved.run_after) == (first.id, NOON + 5 * SECOND)
        with database.snapshot() as stores:
            assert stores.jobs.queued(5, JobKind.HEAD) == moved
            assert stores.jobs.queued(5, JobKind.PUSH) is None
            assert stores.jobs.all(5) == [moved]

    @pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
    def test_the_database_refuses_two_of_a_kind(self, database: SqlDatabase, status: JobStatus) -> None:
        row = {
            "project_id": 5,
            "kind": "head",
            "status": status,
            "created_at": NOON,
            "run_after": NOON,
            "attempts": 0,
            "cancel_requested": False,
            "progress": {},
        }
        with database._engine.begin() as connection:
            connection.execute(insert(job_table), row)
        with database._engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(insert(job_table), row)


class TestClaim:
    def test_a_claimed_job_is_leased(self, database: Database) -> None:
        made = enqueue(database)
        job = claimed(database, "w1")
        assert (job.id, job.status, job.worker, job.attempts) == (made.id, JobStatus.RUNNING, "w1", 1)
        assert (job.started_at, job.lease_until) == (NOON, NOON + 30 * SECOND)
        assert claim(database) is None

    def test_a_job_is_not_due_before_its_time(self, database: Database) -> None:
        enqueue(database, run_after=NOON + SECOND)
        assert claim(database, now=NOON) is None
        assert claim(database, now=NOON + SECOND) is not None

    def test_the_one_that_waited_longest_comes_first(self, database: Database) -> None:
        enqueue(database, JobKind.HEAD, NOON + 2 * SECOND)
        enqueue(database, JobKind.SYNC, NOON + SECOND)
        enqueue(database, JobKind.PUSH, NOON)
        kinds = [claimed(database, now=NOON + 5 * SECOND).kind for _ in range(3)]
        assert kinds == [JobKind.PUSH, JobKind.SYNC, JobKind.HEAD]

    def test_only_the_kinds_asked_for(self, database: Database) -> None:
        enqueue(database, JobKind.HEAD)
        assert claim(database, kinds=(JobKind.SYNC, JobKind.PUSH)) is None
        assert claim(database, kinds=(JobKind.HEAD,)) is not None

    def test_one_of_a_kind_runs_at_a_time_in_a_project(self, database: Database) -> None:
        with database.transaction() as stores:
            other = stores.projects.resolve(ProjectIdentity(label_studio_id=6, created_stamp=1)).id
        enqueue(database)
        running = claimed(database)
        waiting = enqueue(database)
        assert waiting.id != running.id
        assert claim(database) is None
        enqueue(database, project_id=other, run_after=NOON + SECOND)
        assert claimed(database, now=NOON + SECOND).project_id == other
        with database.transaction() as stores:
            stores.jobs.finish(running.id, "w1", JobStatus.SUCCEEDED, "v1 is active", NOON)
        assert claimed(database).id == waiting.id


class TestLease:
    def test_renewing_extends_the_lease_and_keeps_progress(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database)
        progress = Progress(done=3, total=9, unit="images")
        with database.transaction() as stores:
            renewed = stores.jobs.renew(job.id, "w1", NOON + 60 * SECOND, progress)
            assert (renewed.lease_until, renewed.progress) == (NOON + 60 * SECOND, progress)
            assert stores.jobs.renew(job.id, "w1", NOON + 90 * SECOND, None).progress == progress

    def test_a_lost_job_is_noticed(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database, "w1")
        with database.transaction() as stores:
            with pytest.raises(JobLost, match="no longer run by worker w2"):
                stores.jobs.renew(job.id, "w2", NOON, None)
            with pytest.raises(JobLost):
                stores.jobs.finish(job.id, "w2", JobStatus.SUCCEEDED, None, NOON)
            with pytest.raises(JobLost):
                stores.jobs.requeue(job.id, "w2", NOON, None)
            stores.jobs.finish(job.id, "w1", JobStatus.FAILED, "out of memory", NOON + SECOND)
            with pytest.raises(JobLost):
                stores.jobs.renew(job.id, "w1", NOON, None)
        finished = get(database, job.id)
        assert (finished.status, finished.reason, finished.finished_at, finished.lease_until) == (
            JobStatus.FAILED,
            "out of memory",
            NOON + SECOND,
            None,
        )

    def test_a_job_cannot_finish_as_queued(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database)
        with database.transaction() as stores, pytest.raises(ValueError, match="cannot finish as queued"):
            stores.jobs.finish(job.id, "w1", JobStatus.QUEUED, None, NOON)

    def test_an_expired_lease_puts_the_job_back(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database, "w1")
        with database.transaction() as stores:
            stores.jobs.renew(job.id, "w1", NOON + 30 * SECOND, Progress(done=3, total=9, unit="images"))
            assert stores.jobs.requeue_expired(NOON + 29 * SECOND) == []
            (back,) = stores.jobs.requeue_expired(NOON + 30 * SECOND)
        assert (back.id, back.status, back.run_after, back.worker) == (
            job.id,
            JobStatus.QUEUED,
            NOON + 30 * SECOND,
            None,
        )
        assert "w1" in (back.reason or "")
        again = claimed(database, "w2", NOON + 30 * SECOND)
        assert (again.id, again.attempts, again.progress) == (job.id, 2, Progress())

    def test_no_wait_reaches_further_than_a_bound(self, database: Database) -> None:
        enqueue(database)
        leased = claimed(database)
        waiting = enqueue(database, kind=JobKind.PUSH)
        for bound, expected in ((40, (30, 0)), (20, (20, 0)), (-10, (-10, -10))):
            with database.transaction() as stores:
                stores.jobs.shorten_waits(NOON + bound * SECOND, NOON + bound * SECOND)
            lease_until, run_after = get(database, leased.id).lease_until, get(database, waiting.id).run_after
            assert (lease_until, run_after) == tuple(NOON + seconds * SECOND for seconds in expected)

    def test_expired_with_a_cancel_request_is_cancelled(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database)
        with database.transaction() as stores:
            stores.jobs.cancel(job.id, NOON)
            assert stores.jobs.requeue_expired(NOON + 60 * SECOND) == []
        assert get(database, job.id).status is JobStatus.CANCELLED


class TestRequeue:
    def test_a_requeued_job_keeps_its_attempts(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database)
        with database.transaction() as stores:
            stores.jobs.requeue(job.id, "w1", NOON + 2 * SECOND, "no answer from Label Studio")
        back = get(database, job.id)
        assert (back.status, back.attempts, back.run_after) == (JobStatus.QUEUED, 1, NOON + 2 * SECOND)
        assert back.reason == "no answer from Label Studio"
        assert claimed(database, now=NOON + 2 * SECOND).attempts == 2

    @pytest.mark.parametrize(("delay_s", "expected_s"), [(1, 1), (9, 5)])
    def test_it_merges_with_one_queued_meanwhile(self, database: Database, delay_s: int, expected_s: int) -> None:
        enqueue(database)
        job = claimed(database)
        younger = enqueue(database, run_after=NOON + 5 * SECOND)
        with database.transaction() as stores:
            stores.jobs.requeue(job.id, "w1", NOON + delay_s * SECOND, None)
            queued = stores.jobs.queued(5, JobKind.HEAD)
        assert queued is not None
        assert (queued.id, queued.attempts, queued.run_after) == (job.id, 1, NOON + expected_s * SECOND)
        merged = get(database, younger.id)
        assert (merged.status, merged.finished_at) == (JobStatus.CANCELLED, younger.created_at)
        assert merged.reason == f"merged into job {job.id}, which is queued again"


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, database: Database) -> None:
        job = enqueue(database)
        with database.transaction() as stores:
            cancelled = stores.jobs.cancel(job.id, NOON + SECOND)
        assert (cancelled.status, cancelled.finished_at) == (JobStatus.CANCELLED, NOON + SECOND)
        assert claim(database) is None
        assert enqueue(database).id != job.id

    def test_a_running_job_learns_it_at_its_next_renewal(self, database: Database) -> None:
        enqueue(database)
        job = claimed(database)
        with database.transaction() as stores:
            assert stores.jobs.cancel(job.id, NOON).status is JobStatus.RUNNING
            assert stores.jobs.renew(job.id, "w1", NOON + 60 * SECOND, None).cancel_requested
            stores.jobs.finish(job.id, "w1", JobStatus.CANCELLED, "cancelled", NOON)
            assert stores.jobs.cancel(job.id, NOON + SECOND).finished_at == NOON

    def test_an_unknown_job_is_not_found(self, database: Database) -> None:
        with database.transaction() as stores:
            with pytest.raises(NotFound, match="no job 99"):
                stores.jobs.cancel(99, NOON)
            with pytest.raises(NotFound, match="no job 99"):
                stores.jobs.get(99)


class TestHistory:
    def test_what_has_not_ended_is_listed_after_the_newest_however_old_it_is(self, database: Database) -> None:
        enqueue(database, JobKind.FINETUNE)
        long = claimed(database)
        waiting = enqueue(database, JobKind.PUSH, NOON + 3600 * SECOND)
        ended = []
        for _ in range(3):
            enqueue(database)
            ended.append(claimed(database).id)
            with database.transaction() as stores:
                stores.jobs.finish(ended[-1], "w1", JobStatus.SUCCEEDED, None, NOON)
        with database.snapshot() as stores:
            assert [job.id for job in stores.jobs.all(5, limit=2)] == [*ended[:0:-1], waiting.id, long.id]
            assert [job.id for job in stores.jobs.all(5)] == [*ended[::-1], waiting.id, long.id]
            assert [job.id for job in stores.jobs.unfinished()] == [long.id, waiting.id]
            assert stores.jobs.running(5, JobKind.FINETUNE) == get(database, long.id)
            assert stores.jobs.running(5, JobKind.PUSH) is None

    def test_old_final_jobs_are_pruned_and_their_ids_never_reused(self, database: Database) -> None:
        ids = []
        for minute in range(3):
            now = NOON + minute * timedelta(minutes=1)
            enqueue(database)
            ids.append(claimed(database, now=now).id)
            with database.transaction() as stores:
                stores.jobs.finish(ids[-1], "w1", JobStatus.SUCCEEDED, None, now)
        with database.transaction() as stores:
            assert [job.id for job in stores.jobs.all(5)] == ids[::-1]
            assert [job.id for job in stores.jobs.all(5, limit=1)] == ids[-1:]
            assert stores.jobs.prune(NOON + timedelta(minutes=1)) == 1
            assert stores.jobs.prune(NOON + timedelta(hours=1)) == 2
            assert stores.jobs.all(5) == []
        assert enqueue(database).id > max(ids)

    def test_the_newest_of_a_kind_is_found_however_many_others_came_since(self, database: Database) -> None:
        sync = enqueue(database, JobKind.SYNC)
        for _ in range(120):
            job = enqueue(database)
            claimed_job = claim(database, kinds=(JobKind.HEAD,))
            assert claimed_job is not None
            with database.transaction() as stores:
                stores.jobs.finish(job.id, "w1", JobStatus.SUCCEEDED, None, NOON)
        with database.snapshot() as stores:
            assert stores.jobs.newest(5, JobKind.SYNC) == sync
            newest = stores.jobs.newest(5, JobKind.HEAD)
            assert newest is not None
            assert newest.id == job.id
            assert stores.jobs.newest(5, JobKind.FINETUNE) is None


class TestWhatOperatorsSee:
    def test_unfinished_jobs_of_all_projects(self, database: Database) -> None:
        with database.transaction() as stores:
            other = stores.projects.resolve(ProjectIdentity(label_studio_id=6, created_stamp=1)).id
        enqueue(database, JobKind.HEAD, NOON)
        running = claimed(database)
        enqueue(database, JobKind.SYNC, NOON + SECOND, other)
        ended = claimed(database, now=NOON + SECOND)
        with database.transaction() as stores:
            stores.jobs.finish(ended.id, "w1", JobStatus.SUCCEEDED, None, NOON + SECOND)
        queued = enqueue(database, JobKind.PUSH, NOON + SECOND, other)
        with database.snapshot() as stores:
            assert stores.jobs.unfinished() == [running, queued]

    def test_tallies_outlive_the_jobs_they_counted(self, database: Database) -> None:
        def run(duration_s: float, status: JobStatus) -> None:
            enqueue(database)
            job = claimed(database)
            with database.transaction() as stores:
                stores.jobs.finish(job.id, "w1", status, None, NOON + duration_s * SECOND)

        for duration_s in (0.25, 0.5, 1.0, 99_999):
            run(duration_s, JobStatus.SUCCEEDED)
        run(2, JobStatus.FAILED)
        with database.transaction() as stores:
            assert stores.jobs.prune(NOON + 1_000_000 * SECOND) == 5
            assert [(tally.status, tally.bound_s, tally.n_jobs, tally.total_s) for tally in stores.jobs.tallies()] == [
                (JobStatus.FAILED, 3.0, 1, 2.0),
                (JobStatus.SUCCEEDED, 0.3, 1, 0.25),
                (JobStatus.SUCCEEDED, 1.0, 2, 1.5),
                (JobStatus.SUCCEEDED, math.inf, 1, 99_999.0),
            ]
            assert {tally.kind for tally in stores.jobs.tallies()} == {JobKind.HEAD}


class JobLife(RuleBasedStateMachine):
    """Whatever happens in whatever order, no job is lost, doubled, or changed after its end."""

    database: SqlDatabase

    @initialize()
    def start(self) -> None:
        with self.database.transaction() as stores:
            known = stores.projects.all()
            identity = ProjectIdentity(label_studio_id=len(known) + 100, created_stamp=1)
            self.project_id = stores.projects.resolve(identity).id
            for job in [each for project in known for each in stores.jobs.all(project.id)]:
                if job.status not in FINAL:
                    stores.jobs.cancel(job.id, NOON)
            stores.jobs.requeue_expired(NOON + timedelta(days=1))
        self.now = NOON
        self.n_claims = 0
        self.wanted: set[JobKind] = set()
        self.ended: dict[int, Job] = {}

    @property
    def jobs(self) -> list[Job]:
        with self.database.snapshot() as stores:
            return stores.jobs.all(self.project_id, limit=10_000)

    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.status is JobStatus.RUNNING]

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(kind=st.sampled_from([JobKind.HEAD, JobKind.SYNC]), delay_s=st.integers(0, 10))
    def enqueue(self, kind: JobKind, delay_s: int) -> None:
        with self.database.transaction() as stores:
            job = stores.jobs.enqueue(self.project_id, kind, self.now + delay_s * SECOND, self.now)
        assert job.status is JobStatus.QUEUED
        self.wanted.add(kind)

    @rule()
    def claim(self) -> None:
        busy = {job.kind for job in self.running()}
        due = [
            job
            for job in self.jobs
            if job.status is JobStatus.QUEUED and job.run_after <= self.now and job.kind not in busy
        ]
        with self.database.transaction() as stores:
            claimed = stores.jobs.claim(list(JobKind), f"w{self.n_claims}", self.now, self.now + 20 * SECOND)
        assert (claimed is not None) == bool(due)
        if claimed:
            assert claimed.id == min(due, key=lambda job: (job.run_after, job.id)).id
            self.n_claims += 1

    @rule(choice=st.integers(0, 9), action=st.sampled_from(["renew", "succeed", "requeue", "cancel"]))
    def on_running(self, choice: int, action: str) -> None:
        running = self.running()
        if not running:
            return
        job = running[choice % len(running)]
        assert job.worker is not None
        with self.database.transaction() as stores:
            if action == "renew":
                stores.jobs.renew(job.id, job.worker, self.now + 20 * SECOND, Progress(done=1, total=2, unit="steps"))
            elif action == "succeed":
                stores.jobs.finish(job.id, job.worker, JobStatus.SUCCEEDED, None, self.now)
            elif action == "requeue":
                stores.jobs.requeue(job.id, job.worker, self.now, None)
            else:
                stores.jobs.cancel(job.id, self.now)
        if action == "succeed" or job.cancel_requested or action == "cancel":
            self.wanted.discard(job.kind)

    @rule()
    def recover(self) -> None:
        expired = [job for job in self.running() if job.lease_until and job.lease_until <= self.now]
        with self.database.transaction() as stores:
            back = stores.jobs.requeue_expired(self.now)
        assert {job.id for job in back} == {job.id for job in expired if not job.cancel_requested}

    @invariant()
    def one_of_a_kind(self) -> None:
        alive = [(job.kind, job.status) for job in self.jobs if job.status not in FINAL]
        assert len(alive) == len(set(alive))

    @invariant()
    def nothing_wanted_is_lost(self) -> None:
        assert self.wanted <= {job.kind for job in self.jobs if job.status not in FINAL}

    @invariant()
    def every_attempt_was_a_claim(self) -> None:
        assert sum(job.attempts for job in self.jobs) == self.n_claims

    @invariant()
    def what_has_ended_stays_as_it_was(self) -> None:
        now_ended = {job.id: job for job in self.jobs if job.status in FINAL}
        assert self.ended.items() <= now_ended.items()
        assert all(job.finished_at is not None for job in now_ended.values())
        self.ended = now_ended


def test_no_job_is_lost_doubled_or_changed_after_its_end(database: SqlDatabase) -> None:
    machine = type("Machine", (JobLife,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


class TestRelease:
    def test_a_released_job_was_never_tried(self, database: Database) -> None:
        made = enqueue(database)
        job = claimed(database, "w1")
        with database.transaction() as stores:
            stores.jobs.release(job.id, "w1", NOON + SECOND, "the worker was stopped")
        waiting = get(database, job.id)
        assert (waiting.status, waiting.attempts, waiting.worker) == (JobStatus.QUEUED, 0, None)
        assert (waiting.started_at, waiting.lease_until) == (None, None)
        assert (waiting.run_after, waiting.reason) == (NOON + SECOND, "the worker was stopped")
        assert claimed(database, "w2", now=NOON + SECOND).attempts == made.attempts + 1

    def test_earlier_attempts_still_count(self, database: Database) -> None:
        job = enqueue(database)
        with database.transaction() as stores:
            stores.jobs.claim([JobKind.HEAD], "w1", NOON, NOON + SECOND)
            stores.jobs.requeue(job.id, "w1", NOON, "it failed")
            stores.jobs.claim([JobKind.HEAD], "w1", NOON, NOON + SECOND)
            stores.jobs.release(job.id, "w1", NOON, "the worker was stopped")
        assert get(database, job.id).attempts == 1

    def test_only_who_holds_it_releases_it(self, database: Database) -> None:
        job = enqueue(database)
        claimed(database, "w1")
        with database.transaction() as stores, pytest.raises(JobLost):
            stores.jobs.release(job.id, "w2", NOON, "not mine")
        assert get(database, job.id).status is JobStatus.RUNNING
