"""A burst of events is one job; pushing rests."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from backend.domain import Job, JobKind, JobStatus
from tests.factories import NOON
from tests.world import PROJECT, World


def soon(world: World, kind: JobKind = JobKind.HEAD) -> Job:
    with world.database.transaction() as stores:
        return world.scheduler.soon(stores, PROJECT, kind)


def push(world: World) -> datetime:
    with world.database.transaction() as stores:
        return world.scheduler.push(stores, PROJECT).run_after


def run_push(world: World, seconds: float) -> None:
    """Claim the queued push and let it take some time."""
    started = world.run_after(JobKind.PUSH)
    with world.database.transaction() as stores:
        job = stores.jobs.claim([JobKind.PUSH], "test", started, started)
        assert job is not None
        ended = started + timedelta(seconds=seconds)
        stores.jobs.finish(job.id, "test", JobStatus.SUCCEEDED, None, ended)


def test_a_hundred_labels_in_a_burst_are_one_job_after_a_quiet_moment(world: World) -> None:
    world.see_tasks({task_id: "cat" for task_id in range(1, 101)})
    world.finish_jobs()
    for task_id in range(1, 101):
        world.label({task_id: "cat"})
        last = world.clock.now()
        world.clock.forward(0.05)
    heads = [job for job in world.projects.jobs(PROJECT) if job.kind is JobKind.HEAD and job.status is JobStatus.QUEUED]
    assert len(heads) == 1
    assert heads[0].run_after == last + timedelta(seconds=1)


def test_busy_annotators_cannot_hold_a_training_back(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    world.finish_jobs()
    first = world.clock.now()
    for _ in range(100):
        job = soon(world)
        world.clock.forward(0.5)
    assert job.run_after == first + timedelta(seconds=10)
    with world.database.transaction() as stores:
        assert stores.jobs.claim([JobKind.HEAD], "test", first + timedelta(seconds=9.9), NOON) is None
        assert stores.jobs.claim([JobKind.HEAD], "test", first + timedelta(seconds=10), NOON) is not None


def test_labels_that_come_while_a_training_runs_are_another_job(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    with world.database.transaction() as stores:
        later = world.clock.forward(2)
        running = stores.jobs.claim([JobKind.HEAD], "test", later, later + timedelta(seconds=30))
    assert running is not None
    following = soon(world)
    assert following.id != running.id
    assert following.run_after == later + timedelta(seconds=1)


def test_now_moves_a_waiting_job_forward(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    waiting = soon(world)
    world.clock.forward(0.3)
    with world.database.transaction() as stores:
        job = world.scheduler.now(stores, PROJECT, JobKind.HEAD)
    assert job.id == waiting.id
    assert job.run_after == world.clock.now()


def test_a_push_rests_as_long_as_the_last_one_took(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    assert push(world) == NOON
    run_push(world, seconds=20)
    world.clock.forward(25)
    assert push(world) == NOON + timedelta(seconds=40)
    world.clock.forward(10)
    assert push(world) == NOON + timedelta(seconds=40)


def test_a_push_long_ago_asks_for_no_rest(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    push(world)
    run_push(world, seconds=20)
    world.clock.forward(1000)
    assert push(world) == world.clock.now()


def test_a_push_never_rests_longer_than_five_minutes(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    push(world)
    run_push(world, seconds=3600)
    world.clock.forward(3600)
    end_of_rest = world.clock.now() + timedelta(minutes=5)
    assert push(world) == end_of_rest
    world.clock.forward(60)
    assert push(world) == end_of_rest, "asked for again, as by each reconciliation, it is not put off"


def test_no_push_rests_from_one_that_will_have_ended_where_the_clock_has_gone_back(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    push(world)
    run_push(world, seconds=20)
    world.clock.forward(-3600)
    assert push(world) == world.clock.now()


def test_a_fine_tuning_that_failed_is_not_tried_again_at_once(world: World) -> None:
    world.ingestion.setup(world.snapshot)

    def queue() -> Job | None:
        with world.database.transaction() as stores:
            return world.scheduler.finetune(stores, PROJECT)

    assert queue() is not None
    run_after = world.run_after(JobKind.FINETUNE)
    with world.database.transaction() as stores:
        job = stores.jobs.claim([JobKind.FINETUNE], "test", run_after, run_after)
        assert job is not None
        stores.jobs.finish(job.id, "test", JobStatus.FAILED, "it diverged", run_after)
    world.clock.forward(600)
    assert queue() is None
    world.clock.forward(-3600)
    assert queue() is not None, "the clock has gone back"
    world.finish_jobs()
    world.clock.forward(2 * 3600)
    assert queue() is not None


@pytest.mark.parametrize(
    ("outcome", "again"), [(JobStatus.FAILED, False), (JobStatus.CANCELLED, False), (JobStatus.SUCCEEDED, True)]
)
def test_fine_tuning_in_vain_is_not_tried_again_at_once(world: World, outcome: JobStatus, again: bool) -> None:
    world.ingestion.setup(world.snapshot)
    world.finish_jobs()
    with world.database.transaction() as stores:
        now = world.clock.now()
        assert world.scheduler.finetune(stores, PROJECT) is not None
        job = stores.jobs.claim([JobKind.FINETUNE], "test", now + timedelta(seconds=2), now)
        assert job is not None
        stores.jobs.finish(job.id, "test", outcome, "no room", now)
    world.clock.forward(60)
    with world.database.transaction() as stores:
        assert (world.scheduler.finetune(stores, PROJECT) is not None) is again
    world.clock.forward(3600)
    with world.database.transaction() as stores:
        assert world.scheduler.finetune(stores, PROJECT) is not None
