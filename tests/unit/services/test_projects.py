"""What people see and may ask for."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import Mock

import pytest

from backend.domain import JobKind, JobStatus, LabelConfig, VersionKind
from backend.errors import Conflict, NotFound, StoreUnavailable
from backend.promotion import version_key
from tests.factories import NOON, make_identity, make_snapshot
from tests.world import PROJECT, World, pets


def test_an_overview_counts(world: World) -> None:
    world.images.contents["/data/upload/5/cat-9.png"] = b"broken file"
    world.see_tasks(pets(8) | {9: "cat"})
    world.label(pets(6) | {9: "cat"})
    before = world.projects.get(PROJECT)
    assert (before.n_tasks, before.n_labels, before.n_embedded, before.active) == (9, 7, 0, None)
    assert set(before.queued) == {JobKind.SYNC, JobKind.EMBED, JobKind.HEAD, JobKind.QUERY}

    world.embed()
    world.fit()
    after = world.projects.get(PROJECT)
    assert (after.n_embedded, after.n_unreadable) == (8, 1)
    assert after.active == world.active
    assert after.decision.next is VersionKind.HEAD
    assert world.projects.all() == [after]


def test_an_unsupported_config_is_said(world: World) -> None:
    world.ingestion.setup(make_snapshot(LabelConfig(problem="there is no Choices control")))
    overview = world.projects.get(PROJECT)
    assert overview.decision.next is None
    assert overview.decision.reason == "there is no Choices control"
    assert overview.n_labels == 0


def test_a_training_asked_for_starts_at_once(world: World) -> None:
    world.see_tasks(pets(2))
    world.label(pets(2))
    job = world.projects.train(PROJECT, VersionKind.HEAD)
    assert (job.kind, job.status, job.run_after) == (JobKind.HEAD, JobStatus.QUEUED, NOON)
    assert world.projects.train(PROJECT, VersionKind.FINETUNE).kind is JobKind.FINETUNE


def test_an_unsupported_config_cannot_be_trained(world: World) -> None:
    world.ingestion.setup(make_snapshot(LabelConfig(problem="there is no Choices control")))
    with pytest.raises(Conflict, match="there is no Choices control"):
        world.projects.train(PROJECT, VersionKind.HEAD)


def test_jobs_are_listed_and_cancelled(world: World) -> None:
    world.ingestion.setup(world.snapshot)
    job = world.projects.sync(PROJECT)
    assert world.projects.jobs(PROJECT)[0].kind in {JobKind.HEAD, JobKind.SYNC}
    assert world.projects.cancel(job.id).status is JobStatus.CANCELLED
    assert world.projects.job(job.id).status is JobStatus.CANCELLED


@pytest.mark.parametrize("question", ["get", "versions", "jobs", "sync"])
def test_unknown_projects_are_not_found(world: World, question: str) -> None:
    with pytest.raises(NotFound, match="no project 99"):
        getattr(world.projects, question)(99)
    with pytest.raises(NotFound, match="no project 99"):
        world.projects.train(99, VersionKind.HEAD)
    with pytest.raises(NotFound):
        world.projects.cancel(99)


class TestForgetting:
    def test_nothing_is_left(self, world: World) -> None:
        version = world.learn(pets(12))
        world.query()
        world.projects.forget(PROJECT)
        with pytest.raises(NotFound, match="no project 5"):
            world.projects.get(PROJECT)
        assert not world.artifacts.keys(version_key(PROJECT, version.name))
        with world.database.snapshot() as stores:
            assert stores.jobs.unfinished() == []

    def test_what_is_still_connected_is_met_anew(self, world: World) -> None:
        world.learn(pets(12))
        world.projects.forget(PROJECT)
        assert world.learn(pets(12)).number == 1

    def test_other_projects_keep_all_of_theirs(self, world: World) -> None:
        version = world.learn(pets(12))
        world.ingestion.setup(make_snapshot(identity=make_identity(label_studio_id=6)))
        world.projects.forget(6)
        assert world.projects.get(PROJECT).active == version
        assert world.artifacts.keys(version_key(PROJECT, version.name))

    def test_not_while_a_job_runs(self, world: World) -> None:
        version = world.learn(pets(12))
        with world.database.transaction() as stores:
            stores.jobs.enqueue(PROJECT, JobKind.EMBED, NOON, NOON)
            job = stores.jobs.claim([JobKind.EMBED], "worker", NOON, NOON + timedelta(seconds=30))
        with pytest.raises(Conflict, match=f"embed job {job.id} of project 5 runs: cancel it"):
            world.projects.forget(PROJECT)
        assert world.artifacts.keys(version_key(PROJECT, version.name))

    def test_again_where_storage_was_out_of_reach(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        version = world.learn(pets(12))
        with monkeypatch.context() as patch:
            patch.setattr(world.artifacts, "delete", Mock(side_effect=StoreUnavailable("the storage is away")))
            with pytest.raises(StoreUnavailable):
                world.projects.forget(PROJECT)
        world.projects.forget(PROJECT)
        assert not world.artifacts.keys(version_key(PROJECT, version.name))


def test_a_version_comes_with_its_report(world: World) -> None:
    version = world.learn(pets(12))
    detail = world.projects.version(PROJECT, version.name)
    assert (detail.version, detail.problem) == (version, None)
    assert detail.report is not None
    assert detail.report.calibrated.accuracy == version.metrics.accuracy
    assert detail.report.backbone_digest == version.backbone_digest


def test_a_version_without_its_files_says_why(world: World) -> None:
    version = world.learn(pets(12))
    world.artifacts.delete(version_key(PROJECT, version.name))
    detail = world.projects.version(PROJECT, version.name)
    assert (detail.version, detail.report) == (version, None)
    assert detail.problem
    with pytest.raises(NotFound):
        world.projects.version(PROJECT, "p5-v9-00000000")
