"""What people see and may ask for."""

from __future__ import annotations

import pytest

from backend.domain import JobKind, JobStatus, LabelConfig, VersionKind
from backend.errors import Conflict, NotFound
from backend.promotion import version_key
from tests.factories import NOON, make_snapshot
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
