"""Events become rows and jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backend.domain import (
    AnnotationsDeleted,
    AnnotationsSeen,
    JobKind,
    LabelConfig,
    ProjectSeen,
    ProjectSnapshot,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.errors import StoreUnavailable
from tests.factories import NOON, image_url, make_annotation, make_config, make_identity, make_snapshot, make_task
from tests.world import CATS_DOGS_BIRDS, World, pets

SECOND = timedelta(seconds=1)


class TestSetup:
    def test_a_new_project_is_untrained_and_reconciled_at_once(self, world: World) -> None:
        assert world.ingestion.setup(world.snapshot) == "p5-v0-untrained"
        assert world.project.schema == world.snapshot.label_config.schema  # type: ignore[union-attr]
        assert world.run_after(JobKind.SYNC) == NOON

    def test_asking_again_changes_nothing(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        before = world.project
        world.finish_jobs()
        assert world.ingestion.setup(world.snapshot) == "p5-v0-untrained"
        assert world.project == before
        assert world.queued(JobKind.SYNC) is None
        assert world.queued(JobKind.HEAD) is None

    def test_it_is_no_event(self, world: World) -> None:
        """Otherwise nobody would notice that the webhook is missing."""
        world.ingestion.setup(world.snapshot)
        assert world.project.event_at is None
        world.ingestion.handle(ProjectSeen(project=world.snapshot))
        assert world.project.event_at == NOON

    def test_the_active_version_is_named(self, world: World) -> None:
        active = world.learn(pets(8))
        assert world.ingestion.setup(world.snapshot) == active.name

    def test_an_unsupported_config_is_kept_with_its_problem(self, world: World) -> None:
        config = LabelConfig(problem="there is no Choices control: only Taxonomy")
        assert world.ingestion.setup(make_snapshot(config)) == "p5-v0-untrained"
        assert world.project.label_config == config

    def test_a_message_without_title_and_config_leaves_them_alone(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        world.ingestion.setup(ProjectSnapshot(identity=world.snapshot.identity))
        assert world.project.title == "Pets"
        assert world.project.schema is not None

    def test_projects_of_the_same_number_are_told_apart(self, world: World) -> None:
        """Label Studio uses ids again after deleting a project."""
        world.ingestion.setup(world.snapshot)
        second = make_snapshot(identity=make_identity(created_stamp=1_800_000_000))
        assert world.ingestion.setup(second) == "p1000001-v0-untrained"


class TestTasks:
    def test_new_tasks_are_embedded_soon(self, world: World) -> None:
        world.see_tasks({1: "cat", 2: "dog"})
        assert world.tasks[1].image_url == image_url("cat", 1)
        assert world.run_after(JobKind.EMBED) == NOON + SECOND

    def test_known_tasks_are_no_news(self, world: World) -> None:
        world.see_tasks({1: "cat"})
        world.finish_jobs()
        world.see_tasks({1: "cat"})
        assert world.queued(JobKind.EMBED) is None

    def test_a_task_that_shows_another_image_starts_anew(self, world: World) -> None:
        world.learn(pets(8))
        world.finish_jobs()
        world.ingestion.handle(TasksSeen(project=world.snapshot, tasks=(make_task(1, "bird"),)))
        assert world.tasks[1] == make_task(1, "bird")
        assert world.queued(JobKind.EMBED) is not None

    def test_deleted_tasks_take_their_labels_with_them(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.label(pets(3))
        world.finish_jobs()
        world.ingestion.handle(TasksDeleted(project=world.snapshot, task_ids=(1, 99)))
        assert set(world.tasks) == {2, 3}
        assert set(world.annotations) == {102, 103}
        assert world.queued(JobKind.HEAD) is not None

    def test_deleting_unknown_tasks_is_no_news(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        world.finish_jobs()
        world.ingestion.handle(TasksDeleted(project=world.snapshot, task_ids=(99,)))
        assert world.queued(JobKind.HEAD) is None


class TestAnnotations:
    def test_a_label_of_an_unknown_task_brings_the_task_with_it(self, world: World) -> None:
        event = AnnotationsSeen(
            project=world.snapshot, tasks=(make_task(1),), annotations=(make_annotation(101, 1, "cat"),)
        )
        world.ingestion.handle(event)
        assert world.annotations == {101: ("cat",)}
        assert world.queued(JobKind.EMBED) is not None
        assert world.run_after(JobKind.HEAD) == NOON + SECOND

    def test_the_same_event_twice_is_one_label(self, world: World) -> None:
        world.see_tasks({1: "cat"})
        world.label({1: "cat"})
        world.finish_jobs()
        world.ingestion.handle(
            AnnotationsSeen(
                project=world.snapshot, tasks=(make_task(1),), annotations=(make_annotation(101, 1, "cat"),)
            )
        )
        assert world.annotations == {101: ("cat",)}
        assert world.queued(JobKind.HEAD) is None

    def test_events_out_of_order_leave_the_newest(self, world: World) -> None:
        world.see_tasks({1: "cat"})
        for moment, name in ((NOON + SECOND, "dog"), (NOON, "cat")):
            annotation = make_annotation(101, 1, name, updated_at=moment)
            world.ingestion.handle(AnnotationsSeen(project=world.snapshot, tasks=(), annotations=(annotation,)))
        assert world.annotations == {101: ("dog",)}

    def test_a_deletion_outlives_a_late_event(self, world: World) -> None:
        world.see_tasks({1: "cat"})
        annotation = make_annotation(101, 1, "cat", updated_at=NOON - SECOND)
        world.ingestion.handle(AnnotationsDeleted(project=world.snapshot, annotation_ids=(101,)))
        world.ingestion.handle(AnnotationsSeen(project=world.snapshot, tasks=(), annotations=(annotation,)))
        assert world.annotations == {}

    def test_a_deleted_label_is_learned_anew(self, world: World) -> None:
        world.see_tasks({1: "cat"})
        world.label({1: "cat"})
        world.finish_jobs()
        world.unlabel(1)
        assert world.annotations == {}
        assert world.queued(JobKind.HEAD) is not None


class TestOtherEvents:
    def test_start_training_reconciles_and_trains_and_names_the_job(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        world.finish_jobs()
        job = world.ingestion.handle(TrainingRequested(project=world.snapshot))
        assert job == world.queued(JobKind.HEAD)
        assert world.queued(JobKind.SYNC) is not None

    def test_an_unclear_event_reconciles_its_project(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        world.finish_jobs()
        assert world.ingestion.handle(UnclearEvent(action="LABEL_LINK_UPDATED", project=world.snapshot)) is None
        assert world.queued(JobKind.SYNC) is not None
        assert world.queued(JobKind.HEAD) is None

    def test_an_event_without_a_project_reconciles_all(self, world: World) -> None:
        others = [make_snapshot(identity=make_identity(number)) for number in (5, 6)]
        for other in others:
            world.ingestion.setup(other)
        world.finish_jobs()
        world.ingestion.handle(UnclearEvent(action="ANNOTATION_CREATED"))
        with world.database.snapshot() as stores:
            assert all(stores.jobs.queued(project_id, JobKind.SYNC) for project_id in (5, 6))

    @pytest.mark.parametrize(
        "config",
        [CATS_DOGS_BIRDS, make_config("cat"), make_config("cat", "dog", multiple=True), LabelConfig(problem="none")],
    )
    def test_a_config_change_is_learned_and_keeps_the_labels(self, world: World, config: LabelConfig) -> None:
        world.see_tasks(pets(4))
        world.label(pets(4))
        labels = world.annotations
        world.finish_jobs()
        world.configure(config)
        assert world.project.label_config == config
        assert world.annotations == labels
        assert world.queued(JobKind.SYNC) is not None
        assert world.queued(JobKind.HEAD) is not None

    def test_a_renamed_project_is_not_trained(self, world: World) -> None:
        world.ingestion.setup(world.snapshot)
        world.finish_jobs()
        world.ingestion.handle(ProjectSeen(project=replace(world.snapshot, title="Cats & dogs")))
        assert world.project.title == "Cats & dogs"
        assert world.queued(JobKind.HEAD) is None

    def test_an_event_that_cannot_be_stored_is_not_acknowledged(self, world: World) -> None:
        world.database.close()
        (world.folder / "tandem.sqlite3").unlink()
        (world.folder / "tandem.sqlite3").mkdir()
        with pytest.raises(StoreUnavailable):
            world.ingestion.handle(TrainingRequested(project=world.snapshot))
