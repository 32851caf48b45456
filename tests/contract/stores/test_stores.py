"""What projects, tasks, annotations and versions promise, whichever database holds them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.exc import IntegrityError, StatementError

from backend.adapters.database import SqlDatabase
from backend.domain import (
    INTERRUPTED,
    UNKNOWN_STAMP,
    Annotation,
    JobKind,
    KeptView,
    LabelConfig,
    LabelSchema,
    Metrics,
    ModelVersion,
    Project,
    ProjectIdentity,
    Task,
    VersionKind,
    VersionStatus,
    ViewKind,
)
from backend.errors import Conflict, NotFound
from backend.ports import Database

NOON = datetime(2026, 5, 17, 12, 0, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DIGEST = "d" * 64
OTHER_DIGEST = "e" * 64


def a_task(task_id: int, image_url: str | None = None) -> Task:
    return Task(id=task_id, image_url=image_url or f"/data/upload/{task_id}.jpg")


def an_annotation(annotation_id: int, task_id: int, *names: str, updated_at: datetime = NOON) -> Annotation:
    return Annotation(id=annotation_id, task_id=task_id, class_names=names, updated_at=updated_at)


def a_version(number: int, status: VersionStatus = VersionStatus.CANDIDATE) -> ModelVersion:
    return ModelVersion(
        project_id=5,
        number=number,
        name=f"p5-v{number}-0000000{number}",
        kind=VersionKind.HEAD,
        status=status,
        created_at=NOON,
        n_labels=12,
        n_validation=12,
        metrics=Metrics(
            accuracy=0.75,
            macro_precision=0.1 + 0.2,
            macro_recall=0.7,
            macro_f1=0.69,
            log_loss=0.5,
            brier=0.25,
            ece=0.125,
        ),
        class_names=("Häuser > rot", "car"),
        backbone_digest=DIGEST,
        fingerprint="f" * 64,
    )


A_VIEW = KeptView(kind=ViewKind.LABEL_NEXT, label_studio_id=3, task_ids=frozenset({1}))


def upsert_annotations(database: Database, *annotations: Annotation, read_at: datetime | None = None) -> int:
    with database.transaction() as stores:
        return stores.annotations.upsert(5, annotations, read_at=read_at)


def annotations_of(database: Database) -> list[Annotation]:
    with database.snapshot() as stores:
        return stores.annotations.all(5)


class TestProjects:
    def test_the_same_identity_is_the_same_project(self, database: Database, project: Project) -> None:
        assert project.id == 5
        with database.transaction() as stores:
            assert stores.projects.resolve(project.identity) == project
            assert stores.projects.all() == [project]

    def test_a_reused_label_studio_id_is_another_project_above_one_million(
        self, database: Database, project: Project
    ) -> None:
        with database.transaction() as stores:
            second = stores.projects.resolve(ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_001))
            third = stores.projects.resolve(ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_002))
            assert [second.id, third.id] == [1_000_001, 1_000_002]
            assert [each.id for each in stores.projects.all()] == [project.id, second.id, third.id]

    def test_a_deleted_one_leaves_nothing(self, database: Database, project: Project) -> None:
        with database.transaction() as stores:
            other = stores.projects.resolve(ProjectIdentity(label_studio_id=6, created_stamp=1))
            for each in (project, other):
                stores.tasks.upsert(each.id, [a_task(1)])
                stores.annotations.upsert(each.id, [an_annotation(1, 1, "car")])
                stores.jobs.enqueue(each.id, JobKind.HEAD, NOON, NOON)
                stores.versions.add(replace(a_version(1), project_id=each.id))
                stores.views.save(each.id, A_VIEW)
            stores.projects.delete(project.id)
        with database.transaction() as stores:
            assert stores.projects.all() == [other]
            assert stores.projects.resolve(project.identity) == project
            for each, n_left in ((project, 0), (other, 1)):
                assert stores.tasks.count(each.id) == n_left
                assert len(stores.annotations.all(each.id)) == n_left
                assert len(stores.jobs.all(each.id)) == n_left
                assert len(stores.versions.all(each.id)) == n_left
                assert (stores.views.get(each.id, A_VIEW.kind) is not None) == bool(n_left)
            assert stores.versions.next_number(project.id) == 1
            with pytest.raises(NotFound, match="no project 7"):
                stores.projects.delete(7)

    def test_what_resolve_would_return_can_be_found_in_a_snapshot(self, database: Database, project: Project) -> None:
        without_stamp = ProjectIdentity(label_studio_id=6, created_stamp=UNKNOWN_STAMP)
        with database.transaction() as stores:
            newer = stores.projects.resolve(ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_001))
            unidentified = stores.projects.resolve(without_stamp)
        with database.snapshot() as stores:
            find = stores.projects.find
            assert find(project.identity) == project
            assert find(ProjectIdentity(label_studio_id=5, created_stamp=UNKNOWN_STAMP)) == newer
            assert find(without_stamp) == unidentified
            assert find(ProjectIdentity(label_studio_id=6, created_stamp=1)) is None
            assert find(ProjectIdentity(label_studio_id=7, created_stamp=UNKNOWN_STAMP)) is None

    def test_every_field_comes_back_as_it_was_saved(self, database: Database, project: Project) -> None:
        schema = LabelSchema(
            control_name="choice",
            object_name="image",
            data_key="image",
            class_names=('a "quoted" name', "日本 > 東京"),
            multiple=True,
            nested=True,
            synonyms=(("Cardigan", "collie"), ()),
        )
        saved = replace(
            project,
            title="Häuser",
            label_config=LabelConfig(schema=schema, note="two controls: the first one is learned"),
            backbone_digest=DIGEST,
            pushed_version="p5-v1-0badcafe",
            problems=("no webhook", "no token"),
            event_at=NOON,
            predict_at=NOON + SECOND,
            synced_at=datetime(2026, 5, 17, 14, 0, tzinfo=timezone(timedelta(hours=2))),
        )
        with database.transaction() as stores:
            stores.projects.save(saved)
        with database.snapshot() as stores:
            found = stores.projects.get(project.id)
        assert found == saved
        assert found.synced_at is not None
        assert found.synced_at.tzinfo is UTC

    def test_a_project_without_a_schema_keeps_the_problem(self, database: Database, project: Project) -> None:
        saved = replace(project, label_config=LabelConfig(problem="no Choices"))
        with database.transaction() as stores:
            stores.projects.save(saved)
            assert stores.projects.get(project.id) == saved

    def test_an_unknown_project_is_not_found(self, database: Database, project: Project) -> None:
        with database.transaction() as stores:
            with pytest.raises(NotFound, match="no project 6"):
                stores.projects.get(6)
            with pytest.raises(NotFound, match="no project 6"):
                stores.projects.save(replace(project, id=6))

    def test_a_naive_datetime_is_refused(self, database: Database, project: Project) -> None:
        naive = replace(project, event_at=datetime(2026, 5, 17))  # noqa: DTZ001
        with database.transaction() as stores, pytest.raises(StatementError, match="no time zone"):
            stores.projects.save(naive)


@pytest.mark.usefixtures("project")
class TestTasks:
    def test_only_new_and_changed_tasks_count(self, database: Database) -> None:
        with database.transaction() as stores:
            assert stores.tasks.upsert(5, [a_task(2), a_task(1)]) == 2
            assert stores.tasks.upsert(5, [a_task(1), a_task(2, "/other.jpg"), a_task(3)]) == 2
            assert [task.id for task in stores.tasks.all(5)] == [1, 2, 3]
            assert stores.tasks.get(5, [3, 99, 2]) == [a_task(2, "/other.jpg"), a_task(3)]
            assert stores.tasks.count(5) == 3

    def test_what_is_known_of_an_image_lasts_as_long_as_its_url(self, database: Database) -> None:
        seen = replace(a_task(1), image_digest="a" * 64, backbone_digest=DIGEST)
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1)])
            stores.tasks.record_image(5, seen)
            stores.tasks.record_pushed(5, [1], "p5-v1-00000001")
            assert stores.tasks.upsert(5, [a_task(1)]) == 0
            assert stores.tasks.all(5) == [replace(seen, pushed_version="p5-v1-00000001")]
            assert stores.tasks.count_embedded(5, DIGEST) == 1
            assert stores.tasks.count_embedded(5, OTHER_DIGEST) == 0
            assert stores.tasks.count_embedded(5, None) == 0
            stores.tasks.upsert(5, [a_task(1, "/new.jpg")])
            assert stores.tasks.all(5) == [a_task(1, "/new.jpg")]

    def test_an_image_fetched_under_an_old_url_is_not_recorded(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1, "/new.jpg")])
            stores.tasks.record_image(5, Task(id=1, image_url="/old.jpg", image_digest="a" * 64))
            assert stores.tasks.all(5) == [a_task(1, "/new.jpg")]

    def test_labelled_tasks_are_embedded_first(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(each) for each in range(1, 7)] + [Task(id=7, image_url=None)])
            stores.tasks.record_image(5, replace(a_task(1), backbone_digest=DIGEST, image_digest="a" * 64))
            stores.tasks.record_image(5, replace(a_task(2), image_problem="not an image"))
            stores.tasks.record_image(5, replace(a_task(3), backbone_digest=OTHER_DIGEST, image_digest="c" * 64))
            stores.annotations.upsert(
                5, [an_annotation(1, 6, "cat"), an_annotation(2, 5), an_annotation(3, 4, "cat"), an_annotation(4, 6)]
            )
            stores.annotations.delete(5, [3], NOON + SECOND)
            assert [task.id for task in stores.tasks.to_embed(5, DIGEST, 10)] == [6, 3, 4, 5]
            assert [task.id for task in stores.tasks.to_embed(5, DIGEST, 2)] == [6, 3]
            assert [task.id for task in stores.tasks.to_embed(5, None, 10)] == [6, 4, 5]

    def test_forgiven_problems_are_tried_again(self, database: Database) -> None:
        broken = replace(a_task(2), image_problem="404")
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1), a_task(2)])
            stores.tasks.record_image(5, broken)
            assert stores.tasks.problems(5, limit=10) == [broken]
            assert stores.tasks.count_problems(5) == 1
            assert stores.tasks.forgive_problems(5) == 1
            assert stores.tasks.forgive_problems(5) == 0
            assert stores.tasks.problems(5, limit=10) == []
            assert len(stores.tasks.to_embed(5, DIGEST, 10)) == 2

    def test_pushed_suggestions_can_be_forgotten(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1), a_task(2)])
            stores.tasks.record_pushed(5, [2], "p5-v1-00000001")
            assert [task.pushed_version for task in stores.tasks.all(5)] == [None, "p5-v1-00000001"]
            stores.tasks.forget_pushed(5)
            assert [task.pushed_version for task in stores.tasks.all(5)] == [None, None]

    def test_more_ids_than_one_statement_takes(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1), a_task(69_999)])
            assert [task.id for task in stores.tasks.get(5, range(70_000, 0, -1))] == [1, 69_999]
            assert stores.tasks.delete(5, range(70_000)) == 2

    def test_projects_share_nothing(self, database: Database) -> None:
        with database.transaction() as stores:
            other = stores.projects.resolve(ProjectIdentity(label_studio_id=6, created_stamp=1)).id
            stores.tasks.upsert(5, [a_task(1)])
            stores.tasks.upsert(other, [a_task(1, "/other.jpg")])
            stores.annotations.upsert(5, [an_annotation(1, 1, "cat")])
            stores.annotations.upsert(other, [an_annotation(1, 1, "dog")])
            assert stores.tasks.delete(5, [1]) == 1
            assert stores.tasks.all(other) == [a_task(1, "/other.jpg")]
            assert stores.annotations.all(other) == [an_annotation(1, 1, "dog")]

    def test_a_deleted_task_takes_its_annotations_with_it(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(1), a_task(2)])
            stores.annotations.upsert(5, [an_annotation(10, 1, "cat"), an_annotation(20, 2, "dog")])
            assert stores.tasks.delete(5, [1, 99]) == 1
            stores.annotations.upsert(5, [an_annotation(10, 1, "cat")])
            stores.tasks.upsert(5, [a_task(1, "/reused-id.jpg")])
            assert stores.annotations.all(5) == [an_annotation(20, 2, "dog")]
            reused = an_annotation(10, 1, "bird", updated_at=NOON + SECOND)
            assert stores.annotations.upsert(5, [reused]) == 1
            assert stores.annotations.all(5) == [reused, an_annotation(20, 2, "dog")]


@pytest.mark.usefixtures("project")
class TestAnnotations:
    @pytest.fixture(autouse=True)
    def _known_task(self, database: Database, project: Project) -> None:
        with database.transaction() as stores:
            stores.tasks.upsert(project.id, [a_task(1)])

    def test_every_field_comes_back(self, database: Database) -> None:
        given = Annotation(
            id=2**40, task_id=1, class_names=("Ärger", "b"), updated_at=NOON, ground_truth=True, annotator_id=3
        )
        assert upsert_annotations(database, given) == 1
        assert annotations_of(database) == [given]

    def test_the_newest_answer_wins_in_whatever_order_they_come(self, database: Database) -> None:
        older, newer = an_annotation(1, 1, "cat"), an_annotation(1, 1, "dog", updated_at=NOON + SECOND)
        assert upsert_annotations(database, newer, older) == 1
        assert upsert_annotations(database, older) == 0
        assert upsert_annotations(database, newer) == 0
        assert annotations_of(database) == [newer]

    def test_a_change_that_did_not_move_the_time_counts(self, database: Database) -> None:
        upsert_annotations(database, an_annotation(1, 1, "cat"))
        marked = replace(an_annotation(1, 1, "cat"), ground_truth=True)
        assert upsert_annotations(database, marked) == 1
        assert annotations_of(database) == [marked]

    def test_an_annotation_waits_for_its_task(self, database: Database) -> None:
        upsert_annotations(database, an_annotation(1, 2, "cat"))
        assert annotations_of(database) == []
        with database.transaction() as stores:
            stores.tasks.upsert(5, [a_task(2)])
        assert annotations_of(database) == [an_annotation(1, 2, "cat")]

    def test_a_late_event_does_not_revive_a_deleted_annotation(self, database: Database) -> None:
        upsert_annotations(database, an_annotation(1, 1, "cat"))
        with database.transaction() as stores:
            assert stores.annotations.delete(5, [1, 2], NOON + SECOND) == 1
            assert stores.annotations.delete(5, [1, 2], NOON) == 0
        late = [an_annotation(each, 1, "cat", updated_at=NOON + SECOND) for each in (1, 2)]
        assert upsert_annotations(database, *late) == 0
        assert annotations_of(database) == []
        reused = an_annotation(2, 1, "dog", updated_at=NOON + 2 * SECOND)
        assert upsert_annotations(database, reused) == 1
        assert annotations_of(database) == [reused]

    def test_an_annotation_that_was_deleted_twice_is_gone_since_the_second_time(self, database: Database) -> None:
        upsert_annotations(database, an_annotation(1, 1, "cat"))
        with database.transaction() as stores:
            stores.annotations.delete(5, [1], NOON + SECOND)
            stores.annotations.delete(5, [1], NOON + 3 * SECOND)
        assert upsert_annotations(database, an_annotation(1, 1, "dog", updated_at=NOON + 2 * SECOND)) == 0
        assert annotations_of(database) == []

    def test_a_deletion_counts_even_when_label_studio_is_ahead_of_our_clock(self, database: Database) -> None:
        ahead = an_annotation(1, 1, "cat", updated_at=NOON + 60 * SECOND)
        upsert_annotations(database, ahead)
        with database.transaction() as stores:
            assert stores.annotations.delete(5, [1], NOON) == 1
        assert upsert_annotations(database, ahead) == 0
        assert annotations_of(database) == []

    def test_what_the_api_still_lists_was_not_deleted(self, database: Database) -> None:
        upsert_annotations(database, an_annotation(1, 1, "cat"))
        with database.transaction() as stores:
            stores.annotations.delete(5, [1], NOON + SECOND)
        listed = an_annotation(1, 1, "cat")
        assert upsert_annotations(database, listed, read_at=NOON + SECOND) == 0
        assert upsert_annotations(database, listed, read_at=NOON + 2 * SECOND) == 1
        assert annotations_of(database) == [listed]


class TestFind:
    """What requests for suggestions ask for is the same as in a snapshot."""

    def test_nothing_of_what_was_never_seen(self, database: Database) -> None:
        assert database.find(ProjectIdentity(label_studio_id=77, created_stamp=1), [1]) is None

    def test_project_version_and_tasks(self, database: Database, project: Project) -> None:
        found = database.find(project.identity, [1, 2])
        assert found is not None
        assert (found.project, found.active, found.tasks) == (project, None, ())
        changed = replace(project, title="Rost", predict_at=NOON, label_config=LabelConfig(problem="none"))
        with database.transaction() as stores:
            stores.projects.save(changed)
            stores.versions.add(a_version(1))
            active = stores.versions.activate(5, a_version(1).name, "first")
            stores.tasks.upsert(5, [a_task(number) for number in range(1, 8)])
            stores.tasks.record_image(5, replace(a_task(3), image_digest=DIGEST, backbone_digest=OTHER_DIGEST))
        with database.snapshot() as stores:
            tasks = stores.tasks.get(5, [5, 3, 2])
        for identity in (project.identity, ProjectIdentity(label_studio_id=5, created_stamp=UNKNOWN_STAMP)):
            found = database.find(identity, [5, 3, 99, 2])
            assert found is not None
            assert (found.project, found.active, found.tasks) == (changed, active, tuple(tasks))
        assert [task.id for task in tasks] == [2, 3, 5]

    def test_what_another_process_changed_is_seen_at_once(self, database: Database, database_url: str) -> None:
        elsewhere = SqlDatabase(database_url)
        identity = ProjectIdentity(label_studio_id=5, created_stamp=1)
        with elsewhere.transaction() as stores:
            stores.projects.resolve(identity)
        for number in (1, 2, 3):
            with elsewhere.transaction() as stores:
                stores.versions.add(a_version(number))
                stores.versions.activate(5, a_version(number).name, "newer")
            found = database.find(identity, [])
            assert found is not None
            assert found.active is not None
            assert found.active.number == number
        elsewhere.close()


@pytest.mark.usefixtures("project")
class TestVersions:
    def test_every_field_comes_back(self, database: Database) -> None:
        given = a_version(1)
        with database.transaction() as stores:
            stores.versions.add(given)
            assert stores.versions.get(5, given.name) == given
            with pytest.raises(NotFound):
                stores.versions.get(5, given.name + "\0")

    def test_metrics_that_are_no_numbers_come_back(self, database: Database) -> None:
        metrics = replace(a_version(1).metrics, log_loss=math.inf, ece=math.nan)
        with database.transaction() as stores:
            stores.versions.add(replace(a_version(1), metrics=metrics))
            found = stores.versions.all(5)[0].metrics
        assert found.log_loss == math.inf
        assert math.isnan(found.ece)
        assert found.accuracy == 0.75

    def test_numbers_only_grow(self, database: Database) -> None:
        with database.transaction() as stores:
            assert [stores.versions.next_number(5), stores.versions.next_number(5)] == [1, 2]
            stores.versions.add(a_version(7))
            assert stores.versions.next_number(5) == 8
            with pytest.raises(NotFound, match="no project 6"):
                stores.versions.next_number(6)

    def test_one_version_is_active(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.versions.add(a_version(1))
            stores.versions.add(a_version(2))
            assert stores.versions.active(5) is None
            stores.versions.activate(5, a_version(1).name, "first version")
            activated = stores.versions.activate(5, a_version(2).name, "better")
            assert activated == replace(a_version(2), status=VersionStatus.ACTIVE, reason="better")
            assert stores.versions.active(5) == activated
            assert [version.status for version in stores.versions.all(5)] == ["active", "retired"]
            stores.versions.activate(5, a_version(1).name, "rolled back by hand")
            assert [version.status for version in stores.versions.all(5)] == ["retired", "active"]

    def test_landmarks_are_what_says_what_to_train_next(self, database: Database) -> None:
        retired, rejected = VersionStatus.RETIRED, VersionStatus.REJECTED
        history = [
            replace(a_version(1, retired), kind=VersionKind.FINETUNE, backbone_digest=OTHER_DIGEST),
            replace(a_version(2, retired), backbone_digest=OTHER_DIGEST),
            replace(a_version(3, retired), backbone_digest=OTHER_DIGEST),
            a_version(4, VersionStatus.ACTIVE),
            a_version(5, rejected),
            a_version(6, rejected),
            replace(a_version(7, rejected), reason=INTERRUPTED),
            a_version(8),
        ]
        with database.transaction() as stores:
            other = stores.projects.resolve(ProjectIdentity(label_studio_id=6, created_stamp=1))
            stores.versions.add(replace(a_version(9, VersionStatus.ACTIVE), project_id=other.id))
            for version in history:
                stores.versions.add(version)
            landmarks = stores.versions.landmarks(5)
        assert [version.number for version in landmarks] == [8, 6, 4, 3, 1]
        assert landmarks == [history[number - 1] for number in (8, 6, 4, 3, 1)]

    def test_only_a_candidate_can_be_rejected(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.versions.add(a_version(1))
            stores.versions.add(a_version(2))
            stores.versions.activate(5, a_version(1).name, "first version")
            assert stores.versions.candidates(5) == [a_version(2)]
            stores.versions.reject(5, a_version(2).name, "worse")
            assert stores.versions.candidates(5) == []
            rejected = stores.versions.get(5, a_version(2).name)
            assert (rejected.status, rejected.reason) == (VersionStatus.REJECTED, "worse")
            with pytest.raises(Conflict, match="is active"):
                stores.versions.reject(5, a_version(1).name, "worse")

    def test_an_unknown_version_is_not_found(self, database: Database) -> None:
        with database.transaction() as stores:
            for use in (stores.versions.activate, stores.versions.reject):
                with pytest.raises(NotFound, match="no version 'p5-v9'"):
                    use(5, "p5-v9", "why not")

    @pytest.mark.parametrize("second", [a_version(1), replace(a_version(2), name=a_version(1).name)])
    def test_a_number_or_name_cannot_be_taken_twice(self, database: Database, second: ModelVersion) -> None:
        with database.transaction() as stores:
            stores.versions.add(a_version(1))
        with database.transaction() as stores, pytest.raises(IntegrityError):
            stores.versions.add(second)

    def test_the_database_refuses_a_second_active_version(self, database: Database) -> None:
        with database.transaction() as stores:
            stores.versions.add(a_version(1, VersionStatus.ACTIVE))
        with database.transaction() as stores, pytest.raises(IntegrityError):
            stores.versions.add(a_version(2, VersionStatus.ACTIVE))
