"""Jobs are claimed, run and ended, whatever becomes of them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from backend.adapters.database import SqlDatabase
from backend.domain import Job, JobKind, JobStatus, Progress, RetryPolicy, VersionStatus
from backend.errors import (
    EmbedderUnavailable,
    JobFailed,
    JobInterrupted,
    JobProcessDied,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
    StoreUnavailable,
    TrainingImpossible,
)
from backend.heartbeat import LEASE
from backend.ports import Executor, ReportProgress, Stores
from backend.scheduling import Scheduler
from backend.worker import EMBEDDER_LONGEST_DELAY_S, MAX_DEATHS, Lane, Worker, has_ended
from tests.factories import make_version
from tests.fakes import FakeExecutor
from tests.world import PROJECT, World


def make_worker(
    world: World,
    *executors: Executor,
    retry: RetryPolicy | None = None,
    job_history: timedelta = timedelta(days=7),
    sync_interval_s: float = 300,
) -> Worker:
    """A worker with a lane for heads, and with a second executor one for everything else."""
    others = tuple(kind for kind in JobKind if kind is not JobKind.HEAD)
    lanes = [
        Lane(kinds=kinds, executor=executor, poll_s=0.01)
        for kinds, executor in zip([(JobKind.HEAD,), others], executors, strict=False)
    ]
    return Worker(
        world.database,
        world.clock,
        world.scheduler,
        world.reconciliation,
        world.retention,
        lanes,
        sync_interval_s=sync_interval_s,
        job_history=job_history,
        retry=retry or RetryPolicy(first_delay_s=0),
    )


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def enqueue(world: World, kind: JobKind = JobKind.HEAD) -> Job:
    with world.database.transaction() as stores:
        return world.scheduler.now(stores, PROJECT, kind)


def is_now(world: World, job: Job, status: JobStatus) -> Callable[[], bool]:
    return lambda: world.projects.job(job.id).status is status


def until_told(job: Job, report: ReportProgress) -> str:  # noqa: ARG001
    """Work on and on, reporting, until ``report`` says that it is enough."""
    for done in range(10_000):
        report(Progress(done=done, total=10_000, unit="steps"))
        time.sleep(0.01)
    return "worked to the end"


class Failing:
    """Raises one error after another, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, job: Job, report: ReportProgress) -> str:  # noqa: ARG002
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def project(world: World) -> World:
    """A world with a project and no jobs."""
    world.ingestion.setup(world.snapshot)
    world.finish_jobs()
    return world


def test_a_lease_begins_when_the_job_is_claimed(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before another writer was waited for: it would be over at once, and the job run twice."""
    job = enqueue(project)
    transaction = project.database.transaction

    @contextmanager
    def after_a_wait() -> Iterator[Stores]:
        with transaction() as stores:
            project.clock.forward(LEASE.total_seconds())
            yield stores

    monkeypatch.setattr(project.database, "transaction", after_a_wait)
    worker = make_worker(project, FakeExecutor(lambda *_: "done"))
    claimed = worker._claim(worker._lanes[0])
    assert claimed is not None
    assert (claimed.id, claimed.started_at) == (job.id, project.clock.now())
    with transaction() as stores:
        assert stores.jobs.requeue_expired(project.clock.now()) == []


class TestOutcomes:
    def test_a_job_runs_and_says_what_came_of_it(self, project: World) -> None:
        job = enqueue(project)
        executor = FakeExecutor(lambda job, _report: f"head {job.id} fitted")
        with running(make_worker(project, executor)):
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))
        ended = project.projects.job(job.id)
        assert (ended.reason, ended.attempts) == (f"head {job.id} fitted", 1)
        assert ended.finished_at == project.clock.now()
        assert executor.closed

    def test_too_little_to_learn_from_is_no_failure(self, project: World) -> None:
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(Failing(TrainingImpossible("waiting for labels: 3 of 4"))))):
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))
        assert project.projects.job(job.id).reason == "waiting for labels: 3 of 4"

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (JobFailed("the child process was killed (signal 9)"), "the child process was killed (signal 9)"),
            (LabelStudioUnauthorized("the API key was refused"), "the API key was refused"),
            (ZeroDivisionError("float division"), "ZeroDivisionError: float division"),
        ],
    )
    def test_a_failed_job_says_why_and_does_not_block_the_next(
        self, project: World, error: Exception, reason: str
    ) -> None:
        failed = enqueue(project)
        with running(make_worker(project, FakeExecutor(Failing(error)))):
            wait_for(is_now(project, failed, JobStatus.FAILED))
            following = enqueue(project)
            wait_for(is_now(project, following, JobStatus.SUCCEEDED))
        assert project.projects.job(failed.id).reason == reason

    @pytest.mark.parametrize(
        "error",
        [
            LabelStudioUnavailable("no answer"),
            EmbedderUnavailable("starting"),
            StoreUnavailable("locked"),
            JobInterrupted("the database is locked"),
            JobProcessDied("the child process was killed (signal 9)"),
            OSError(errno.ENOSPC, "no space left on device"),
        ],
    )
    def test_what_may_pass_is_tried_again(self, project: World, error: Exception) -> None:
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(Failing(error, error)))):
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))
        ended = project.projects.job(job.id)
        assert (ended.attempts, ended.reason) == (3, "done")

    def test_what_does_not_pass_is_given_up(self, project: World) -> None:
        job = enqueue(project)
        error = LabelStudioUnavailable("no answer")
        retry = RetryPolicy(max_attempts=2, first_delay_s=0)
        with running(make_worker(project, FakeExecutor(Failing(error, error)), retry=retry)):
            wait_for(is_now(project, job, JobStatus.FAILED))
        ended = project.projects.job(job.id)
        assert (ended.attempts, ended.reason) == (2, "no answer")

    def test_the_embedder_is_asked_again_sooner_and_more_often(self, project: World) -> None:
        job = enqueue(project)
        retry = RetryPolicy(max_attempts=2, first_delay_s=100, longest_delay_s=100)
        errors = [EmbedderUnavailable("starting") for _ in range(3)]
        with running(make_worker(project, FakeExecutor(Failing(*errors)), retry=retry)):
            for _ in errors:
                soon = project.clock.now() + timedelta(seconds=EMBEDDER_LONGEST_DELAY_S)
                wait_for(lambda soon=soon: project.projects.job(job.id).run_after == soon)
                project.clock.forward(EMBEDDER_LONGEST_DELAY_S)
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))

    def test_what_kills_every_child_is_given_up_soon(self, project: World) -> None:
        job = enqueue(project)
        errors = [JobProcessDied("the child process was killed (signal 9)") for _ in range(20)]
        with running(make_worker(project, FakeExecutor(Failing(*errors)))):
            wait_for(is_now(project, job, JobStatus.FAILED))
        assert project.projects.job(job.id).attempts == MAX_DEATHS

    def test_another_try_waits(self, project: World) -> None:
        job = enqueue(project)
        executor = FakeExecutor(Failing(LabelStudioUnavailable("no answer")))
        with running(make_worker(project, executor, retry=RetryPolicy(first_delay_s=100, longest_delay_s=100))):
            wait_for(lambda: project.projects.job(job.id).reason == "no answer")
            waiting = project.projects.job(job.id)
            assert waiting.status is JobStatus.QUEUED
            assert waiting.run_after == project.clock.now() + timedelta(seconds=100)
            project.clock.forward(100)
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))

    def test_a_slow_job_does_not_hold_up_another_lane(self, project: World) -> None:
        release = threading.Event()
        slow = enqueue(project, JobKind.PUSH)
        with running(make_worker(project, FakeExecutor(), FakeExecutor(lambda _job, _report: str(release.wait(20))))):
            wait_for(is_now(project, slow, JobStatus.RUNNING))
            head = enqueue(project)
            wait_for(is_now(project, head, JobStatus.SUCCEEDED))
            assert is_now(project, slow, JobStatus.RUNNING)()
            release.set()
            wait_for(is_now(project, slow, JobStatus.SUCCEEDED))


class TestLease:
    def test_progress_is_written_and_the_lease_renewed(self, project: World) -> None:
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(until_told))):
            wait_for(lambda: project.projects.job(job.id).progress.done > 0)
            later = project.clock.forward(20)
            wait_for(lambda: project.projects.job(job.id).lease_until == later + LEASE)
            progress = project.projects.job(job.id).progress
            assert (progress.total, progress.unit) == (10_000, "steps")

    def test_a_job_that_tells_nothing_keeps_its_lease(self, project: World) -> None:
        done = threading.Event()
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(lambda *_: str(done.wait(60))))):
            wait_for(is_now(project, job, JobStatus.RUNNING))
            later = project.clock.forward(20)
            patience_s = LEASE.total_seconds() / 2
            wait_for(lambda: project.projects.job(job.id).lease_until == later + LEASE, timeout_s=patience_s)
            done.set()

    def test_a_database_that_is_busy_for_a_moment_does_not_end_a_lease(
        self, project: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def locked() -> object:
            raise StoreUnavailable("the database is locked")

        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(until_told))):
            wait_for(lambda: project.projects.job(job.id).progress.done > 0)
            with monkeypatch.context() as patch:
                patch.setattr(project.database, "transaction", locked)
                time.sleep(2.5)
            later = project.clock.forward(20)
            wait_for(lambda: project.projects.job(job.id).lease_until == later + LEASE)

    def test_a_cancelled_job_stops(self, project: World) -> None:
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(until_told))):
            wait_for(is_now(project, job, JobStatus.RUNNING))
            project.projects.cancel(job.id)
            wait_for(is_now(project, job, JobStatus.CANCELLED))
        assert project.projects.job(job.id).reason == "cancelled on request"

    def test_a_job_that_another_worker_took_over_is_let_go(self, project: World) -> None:
        job = enqueue(project)
        executor = FakeExecutor(until_told)
        with running(make_worker(project, executor)):
            wait_for(is_now(project, job, JobStatus.RUNNING))
            with project.database.transaction() as stores:
                now = project.clock.now()
                stores.jobs.requeue_expired(now + LEASE)
                taken = stores.jobs.claim([JobKind.HEAD], "another", now + LEASE, now + 10 * LEASE)
            assert taken is not None
            following = _another_project(project)
            wait_for(is_now(project, following, JobStatus.RUNNING))
        kept = project.projects.job(job.id)
        assert (kept.status, kept.worker) == (JobStatus.RUNNING, "another")

    def test_a_stopped_worker_puts_its_job_back(self, project: World) -> None:
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(until_told))):
            wait_for(is_now(project, job, JobStatus.RUNNING))
        waiting = project.projects.job(job.id)
        assert (waiting.status, waiting.reason) == (JobStatus.QUEUED, "the worker was stopped")
        assert waiting.attempts == 0
        with running(make_worker(project, FakeExecutor())):
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))

    def test_what_a_dead_worker_of_this_machine_held_is_run_again_at_once(self, project: World) -> None:
        job = enqueue(project)
        with subprocess.Popen([sys.executable, "-c", ""]) as dead:
            dead.wait()
        with project.database.transaction() as stores:
            now = project.clock.now()
            stores.jobs.claim([JobKind.HEAD], f"{socket.gethostname()}-{dead.pid}", now, now + LEASE)
            stores.versions.add(make_version(1))
        with running(make_worker(project, FakeExecutor())):
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))
        assert project.projects.job(job.id).attempts == 2
        assert project.versions[0].status is VersionStatus.REJECTED

    @pytest.mark.parametrize(
        "worker",
        [f"{socket.gethostname()}-{os.getppid()}", f"elsewhere-{os.getpid()}", "elsewhere", "by-hand"],
        ids=["alive", "on another machine", "without a number", "named by hand"],
    )
    def test_whose_end_is_not_known_keeps_its_lease(self, worker: str) -> None:
        assert not has_ended(worker)

    def test_a_worker_before_this_one_that_had_its_number_has_ended(self) -> None:
        """As in a container, where each process has the number of the one before it."""
        assert has_ended(f"{socket.gethostname()}-{os.getpid()}")

    def test_a_clock_that_goes_back_keeps_nothing_waiting(self, project: World) -> None:
        taken, waiting = enqueue(project), enqueue(project, JobKind.PUSH)
        now = project.clock.now()
        with project.database.transaction() as stores:
            stores.jobs.claim([JobKind.HEAD], "dead", now, now + timedelta(hours=2))
            stores.jobs.enqueue(PROJECT, JobKind.PUSH, now + timedelta(hours=2), now)
        with running(make_worker(project, FakeExecutor())):
            wait_for(lambda: project.projects.job(taken.id).lease_until == now + LEASE)
            project.clock.forward(31)
            wait_for(is_now(project, taken, JobStatus.SUCCEEDED))
        with running(make_worker(project, FakeExecutor(), FakeExecutor())):
            wait_for(is_now(project, waiting, JobStatus.SUCCEEDED))

    def test_a_training_waits_for_a_quiet_moment_for_as_long_as_the_settings_say(self, project: World) -> None:
        project.scheduler = Scheduler(project.clock, replace(project.policy, quiet_s=1800, max_wait_s=3600))
        with project.database.transaction() as stores:
            waiting = project.scheduler.soon(stores, PROJECT, JobKind.HEAD)
        make_worker(project, FakeExecutor())._requeue_lost_and_sync(project.clock.now())
        assert project.run_after(JobKind.HEAD) == waiting.run_after

    @pytest.mark.parametrize("error", [JobFailed("its child was ended, too"), EmbedderUnavailable("it was, too")])
    def test_what_fails_because_everything_is_ended_is_put_back(self, project: World, error: Exception) -> None:
        begun = threading.Event()
        ended = threading.Event()

        def end_with_all(job: Job, report: ReportProgress) -> str:  # noqa: ARG001
            begun.set()
            ended.wait(20)
            raise error

        job = enqueue(project)
        worker = make_worker(project, FakeExecutor(end_with_all))
        with running(worker):
            assert begun.wait(20)
            worker.stop()
            ended.set()
        waiting = project.projects.job(job.id)
        assert (waiting.status, waiting.attempts) == (JobStatus.QUEUED, 0)

    def test_a_job_that_never_ends_is_given_back(self, project: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backend.worker.DRAIN_S", 0.2)
        ended = threading.Event()
        begun = threading.Event()

        def hang(job: Job, report: ReportProgress) -> str:  # noqa: ARG001
            begun.set()
            ended.wait(20)
            return "too late"

        job = enqueue(project)
        worker = make_worker(project, FakeExecutor(hang))
        all_ended = []
        thread = threading.Thread(target=lambda: all_ended.append(worker.run()))
        thread.start()
        assert begun.wait(20)
        worker.stop()
        thread.join(20)
        assert all_ended == [False]
        ended.set()
        waiting = project.projects.job(job.id)
        assert (waiting.status, waiting.attempts) == (JobStatus.QUEUED, 0)

    def test_a_job_of_a_worker_that_died_is_run_again(self, project: World) -> None:
        job = enqueue(project)
        with project.database.transaction() as stores:
            now = project.clock.now()
            stores.jobs.claim([JobKind.HEAD], "dead", now, now + LEASE)
            stores.versions.add(make_version(1))
        executor = FakeExecutor()
        with running(make_worker(project, executor)):
            time.sleep(0.1)
            assert is_now(project, job, JobStatus.RUNNING)()
            assert project.versions[0].status is VersionStatus.CANDIDATE
            project.clock.forward(31)
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))
        assert project.projects.job(job.id).attempts == 2
        assert project.versions[0].status is VersionStatus.REJECTED


class TestHistory:
    def test_jobs_that_ended_are_listed_for_a_while(self, project: World) -> None:
        ended = project.projects.jobs(PROJECT)
        assert ended != []
        worker = make_worker(project, FakeExecutor(), FakeExecutor(), job_history=timedelta(days=2))
        project.clock.forward(1.9 * 24 * 3600)
        with running(worker):
            time.sleep(1.5)
        assert {job.id for job in ended} <= {job.id for job in project.projects.jobs(PROJECT)}
        project.clock.forward(0.2 * 24 * 3600)
        with running(make_worker(project, FakeExecutor(), FakeExecutor(), job_history=timedelta(days=2))):
            wait_for(lambda: not {job.id for job in ended} & {job.id for job in project.projects.jobs(PROJECT)})


class TestStart:
    def test_every_project_is_reconciled_embedded_and_learned(self, project: World) -> None:
        everything = FakeExecutor()
        heads = FakeExecutor()
        with running(make_worker(project, heads, everything)):
            wait_for(lambda: {job.kind for job in everything.ran} == {JobKind.SYNC, JobKind.EMBED} and bool(heads.ran))

    def test_connected_projects_are_found_without_any_state(self, world: World) -> None:
        everything = FakeExecutor()
        with running(make_worker(world, FakeExecutor(), everything)):
            wait_for(lambda: [job.kind for job in everything.ran] == [JobKind.SYNC])
        assert world.project.title == "Pets"

    def test_they_are_found_as_soon_as_label_studio_answers(self, world: World) -> None:
        world.gateway.error = LabelStudioUnavailable("it is still starting")
        everything = FakeExecutor()
        with running(make_worker(world, FakeExecutor(), everything, sync_interval_s=0.05)):
            wait_for(lambda: world.gateway.calls.count("connected_projects") > 1)
            world.gateway.error = None
            wait_for(lambda: JobKind.SYNC in {job.kind for job in everything.ran})
        assert world.project.title == "Pets"

    def test_without_label_studio_it_works_all_the_same(self, project: World) -> None:
        project.gateway.error = LabelStudioUnavailable("no answer")
        heads = FakeExecutor()
        with running(make_worker(project, heads)):
            wait_for(lambda: bool(heads.ran))

    def test_a_candidate_that_nobody_judged_is_rejected(self, project: World) -> None:
        with project.database.transaction() as stores:
            stores.versions.add(make_version(1))
        with running(make_worker(project, FakeExecutor())):
            wait_for(lambda: project.versions[0].status is VersionStatus.REJECTED)
        assert "interrupted" in project.versions[0].reason


@contextmanager
def reconciled(project: World) -> Iterator[Callable[[], int]]:
    """Run a worker that has reconciled the project once; lend how often it has by now."""
    everything = FakeExecutor()

    def n_syncs() -> int:
        return sum(job.kind is JobKind.SYNC for job in everything.ran)

    project.label_studio.backends.clear()  # a project that is discovered is reconciled once more
    with running(make_worker(project, FakeExecutor(), everything)):
        wait_for(lambda: n_syncs() == 1 and project.projects.get(PROJECT).running == ())
        yield n_syncs


def _out_of_order(_: SqlDatabase) -> None:
    raise RuntimeError("nobody has foreseen this")


class TestHouse:
    def test_a_project_is_reconciled_from_time_to_time(self, project: World) -> None:
        with reconciled(project) as n_syncs:
            project.clock.forward(299)
            time.sleep(1.2)
            assert n_syncs() == 1
            project.clock.forward(2)
            wait_for(lambda: n_syncs() == 2)

    @pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "merged"])
    def test_it_goes_on_after_a_reconciliation_that_never_started(self, project: World, cancelled: bool) -> None:
        worker, now = make_worker(project, FakeExecutor(), FakeExecutor()), project.clock.now()
        with project.database.transaction() as stores:
            if cancelled:
                stores.jobs.cancel(project.scheduler.now(stores, PROJECT, JobKind.SYNC).id, now)
            else:
                project.scheduler.now(stores, PROJECT, JobKind.SYNC)
                first = stores.jobs.claim([JobKind.SYNC], "w", now, now + timedelta(seconds=30))
                assert first is not None
                project.scheduler.now(stores, PROJECT, JobKind.SYNC)
                stores.jobs.requeue(first.id, "w", now, "Label Studio answered 502")
                stores.jobs.claim([JobKind.SYNC], "w", now, now + timedelta(seconds=30))
                stores.jobs.finish(first.id, "w", JobStatus.SUCCEEDED, "reconciled", now)
        worker._requeue_lost_and_sync(project.clock.forward(299))
        assert project.queued(JobKind.SYNC) is None
        worker._requeue_lost_and_sync(project.clock.forward(2))
        assert project.queued(JobKind.SYNC) is not None

    def test_a_clock_that_goes_back_does_not_put_it_off(self, project: World) -> None:
        worker = make_worker(project, FakeExecutor(), FakeExecutor())
        worker._requeue_lost_and_sync(project.clock.forward(-3600))
        assert project.queued(JobKind.SYNC) is not None

    def test_it_rests_for_longer_after_one_that_took_long(self, project: World) -> None:
        worker, now = make_worker(project, FakeExecutor(), FakeExecutor()), project.clock.now()
        with project.database.transaction() as stores:
            job = project.scheduler.now(stores, PROJECT, JobKind.SYNC)
            stores.jobs.claim([JobKind.SYNC], "w", now, now + LEASE)
            stores.jobs.finish(job.id, "w", JobStatus.SUCCEEDED, "reconciled", project.clock.forward(100))
        worker._requeue_lost_and_sync(project.clock.forward(1999))
        assert project.queued(JobKind.SYNC) is None
        worker._requeue_lost_and_sync(project.clock.forward(2))
        assert project.queued(JobKind.SYNC) is not None

    def test_it_outlives_whatever_becomes_of_the_database(
        self, project: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with reconciled(project) as n_syncs:
            with monkeypatch.context() as broken:
                broken.setattr(SqlDatabase, "transaction", _out_of_order)
                broken.setattr(SqlDatabase, "snapshot", _out_of_order)
                time.sleep(1.5)
            project.clock.forward(301)
            wait_for(lambda: n_syncs() == 2)

    def test_a_lane_outlives_a_job_that_cannot_be_ended(self, project: World, monkeypatch: pytest.MonkeyPatch) -> None:
        may_end = threading.Event()
        job = enqueue(project)
        with running(make_worker(project, FakeExecutor(lambda *_: str(may_end.wait(20))))):
            wait_for(is_now(project, job, JobStatus.RUNNING))
            with monkeypatch.context() as broken:
                broken.setattr(SqlDatabase, "transaction", _out_of_order)
                may_end.set()
                time.sleep(1.5)
            assert project.projects.job(job.id).status is JobStatus.RUNNING
            project.clock.forward(LEASE.total_seconds() + 1)
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))

    def test_old_jobs_are_cleared_away(self, project: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backend.worker.RETENTION_INTERVAL_S", 0.01)
        old = [job.id for job in project.projects.jobs(PROJECT)]
        assert old
        with running(make_worker(project, FakeExecutor(), FakeExecutor())):
            project.clock.forward(8 * 24 * 3600)
            wait_for(lambda: not set(old) & {job.id for job in project.projects.jobs(PROJECT)})

    def test_features_are_cleared_from_time_to_time_whatever_happens(
        self, project: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        errors = [StoreUnavailable("the database is locked"), OSError("the disk is gone")]
        n_cleared = 0

        def clear() -> None:
            nonlocal n_cleared
            if errors:
                raise errors.pop()
            n_cleared += 1

        monkeypatch.setattr(project.retention, "run", clear)
        monkeypatch.setattr("backend.worker.RETENTION_INTERVAL_S", 0.01)
        with running(make_worker(project, FakeExecutor(), FakeExecutor())):
            wait_for(lambda: n_cleared > 1)

    def test_a_database_that_is_busy_for_a_while_ends_nothing(
        self, project: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transaction = project.database.transaction
        with running(make_worker(project, FakeExecutor(), FakeExecutor())):
            first = enqueue(project)
            wait_for(is_now(project, first, JobStatus.SUCCEEDED))
            wait_for(lambda: all(job.finished_at for job in project.projects.jobs(PROJECT)))

            def locked() -> object:
                raise StoreUnavailable("the database is locked")

            monkeypatch.setattr(project.database, "transaction", locked)
            time.sleep(1.2)
            monkeypatch.setattr(project.database, "transaction", transaction)
            job = enqueue(project)
            wait_for(is_now(project, job, JobStatus.SUCCEEDED))


def _another_project(world: World) -> Job:
    snapshot = replace(world.snapshot, identity=replace(world.snapshot.identity, label_studio_id=6))
    world.ingestion.setup(snapshot)
    with world.database.transaction() as stores:
        return world.scheduler.now(stores, 6, JobKind.HEAD)
