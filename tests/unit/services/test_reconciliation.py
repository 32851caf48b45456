"""Label Studio is the truth: what events missed comes in, and what is wrong with the connection is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backend.domain import AnnotationsDeleted, AnnotationsSeen, JobKind, LabelConfig, TasksSeen
from backend.errors import ImageNotFound, LabelStudioRejected, LabelStudioUnauthorized, LabelStudioUnavailable
from backend.services.reconciliation import Reconciliation
from tests.factories import NOON, image_url, make_annotation, make_config, make_identity, make_task
from tests.fakes import make_webhook
from tests.world import CATS_DOGS_BIRDS, PROJECT, PUBLIC_URL, World, pets

WEBHOOK_URL = f"{PUBLIC_URL}/webhook"


@pytest.fixture
def connected(world: World) -> World:
    """A project of which Tandem knows no more than the config; nothing queued."""
    world.ingestion.setup(world.snapshot)
    world.label_studio.webhooks.append(make_webhook(WEBHOOK_URL))
    world.finish_jobs()
    return world


def fill(world: World, n: int) -> None:
    """Tasks and labels that no event told of."""
    for task_id, name in pets(n).items():
        world.label_studio.tasks[task_id] = make_task(task_id, name)
        world.label_studio.annotations[100 + task_id] = make_annotation(100 + task_id, task_id, name)


class TestWhatEventsMissed:
    def test_what_is_deleted_while_listing_stays_deleted(self, connected: World) -> None:
        fill(connected, 4)
        connected.sync()
        connected.clock.forward(10)

        def delete() -> None:
            connected.gateway.while_listing = lambda: None
            connected.clock.forward(1)
            connected.ingestion.handle(AnnotationsDeleted(project=connected.snapshot, annotation_ids=(104,)))
            connected.clock.forward(1)

        connected.gateway.while_listing = delete
        connected.sync()
        assert set(connected.annotations) == {101, 102, 103}

    def test_labels_made_before_connecting(self, connected: World) -> None:
        fill(connected, 8)
        assert connected.sync() == "16 changes brought in"
        assert connected.annotations == {100 + task_id: (name,) for task_id, name in pets(8).items()}
        assert connected.queued(JobKind.EMBED) is not None
        assert connected.queued(JobKind.HEAD) is not None
        assert connected.project.synced_at == connected.clock.now()
        assert [progress.done for progress in connected.reports.seen] == [3, 6, 8]
        assert connected.project.problems == ()

    def test_nothing_new_queues_nothing(self, connected: World) -> None:
        fill(connected, 8)
        connected.sync()
        connected.embed()
        connected.finish_jobs()
        assert connected.sync() == "0 changes brought in"
        assert connected.projects.get(PROJECT).queued == ()

    def test_deleted_tasks_and_labels(self, connected: World) -> None:
        fill(connected, 8)
        connected.sync()
        del connected.label_studio.tasks[1]
        del connected.label_studio.annotations[101]
        del connected.label_studio.annotations[102]
        connected.finish_jobs()
        connected.sync()
        assert set(connected.tasks) == set(range(2, 9))
        assert set(connected.annotations) == set(range(103, 109))
        assert connected.queued(JobKind.HEAD) is not None

    def test_changed_labels_and_images(self, connected: World) -> None:
        fill(connected, 2)
        connected.sync()
        connected.label_studio.tasks[1] = make_task(1, "bird")
        later = NOON + timedelta(seconds=1)
        connected.label_studio.annotations[102] = make_annotation(102, 2, "dog", updated_at=later)
        connected.sync()
        assert connected.tasks[1].image_url == image_url("bird", 1)
        assert connected.annotations[102] == ("dog",)

    def test_a_label_that_was_deleted_here_but_is_there_is_revived(self, connected: World) -> None:
        """A transfer of annotations, or a deletion that Label Studio undid."""
        fill(connected, 2)
        connected.sync()
        connected.unlabel(1)
        assert set(connected.annotations) == {102}
        connected.label_studio.annotations[101] = make_annotation(101, 1, "dog")
        connected.clock.forward(10)
        connected.sync()
        assert set(connected.annotations) == {101, 102}

    def test_a_label_that_was_missing_for_a_moment_comes_back_with_its_event(self, connected: World) -> None:
        fill(connected, 2)
        connected.sync()
        connected.clock.forward(10)
        given = connected.label_studio.annotations.pop(101)
        changed = replace(given, updated_at=connected.clock.now() + timedelta(seconds=1))
        connected.gateway.while_listing = lambda: connected.clock.forward(2)
        connected.sync()
        assert set(connected.annotations) == {102}
        connected.ingestion.handle(AnnotationsSeen(project=connected.snapshot, tasks=(), annotations=(changed,)))
        assert set(connected.annotations) == {101, 102}

    def test_imported_tasks_with_labels(self, connected: World) -> None:
        """Their event tells the tasks only."""
        fill(connected, 4)
        tasks = tuple(connected.label_studio.tasks.values())
        connected.ingestion.handle(TasksSeen(project=connected.snapshot, tasks=tasks))
        assert connected.annotations == {}
        connected.sync()
        assert len(connected.annotations) == 4

    def test_what_comes_while_listing_is_kept(self, connected: World) -> None:
        fill(connected, 4)

        def submit() -> None:
            connected.gateway.while_listing = lambda: None
            event = AnnotationsSeen(
                project=connected.snapshot,
                tasks=(make_task(50),),
                annotations=(make_annotation(150, 50, "cat", updated_at=connected.clock.now()),),
            )
            connected.ingestion.handle(event)

        connected.gateway.while_listing = submit
        connected.sync()
        assert 150 in connected.annotations
        assert 50 in connected.tasks

    def test_a_listing_that_breaks_off_deletes_nothing(self, connected: World) -> None:
        fill(connected, 8)
        connected.sync()

        def break_off() -> None:
            raise LabelStudioUnavailable("no answer")

        connected.gateway.while_listing = break_off
        with pytest.raises(LabelStudioUnavailable):
            connected.sync()
        assert len(connected.annotations) == 8
        assert connected.project.problems == ("no answer",)

    def test_a_changed_config_is_learned(self, connected: World) -> None:
        fill(connected, 4)
        connected.sync()
        connected.embed()
        connected.finish_jobs()
        connected.label_studio.label_config = CATS_DOGS_BIRDS
        connected.label_studio.title = "Pets and birds"
        connected.sync()
        assert connected.project.label_config == CATS_DOGS_BIRDS
        assert connected.project.title == "Pets and birds"
        assert connected.queued(JobKind.HEAD) is not None

    def test_an_unsupported_config_is_said_and_its_tasks_left_alone(self, connected: World) -> None:
        fill(connected, 4)
        connected.label_studio.label_config = LabelConfig(problem="there is no Choices control")
        assert connected.sync() == "nothing to learn: there is no Choices control"
        assert connected.tasks == {}

    def test_images_with_problems_are_tried_again(self, connected: World) -> None:
        fill(connected, 4)
        connected.images.contents[image_url("cat", 2)] = ImageNotFound("404")
        connected.sync()
        connected.embed()
        connected.finish_jobs()
        connected.images.contents.clear()
        connected.sync()
        assert connected.queued(JobKind.EMBED) is not None
        assert connected.embed() == "1 images embedded"

    def test_images_that_nobody_came_to_embed_are_embedded(self, connected: World) -> None:
        fill(connected, 4)
        connected.sync()
        connected.finish_jobs()
        assert connected.sync() == "0 changes brought in"
        assert connected.queued(JobKind.EMBED) is not None

    def test_a_version_that_was_not_pushed_is_pushed(self, connected: World) -> None:
        fill(connected, 8)
        connected.sync()
        connected.embed()
        connected.fit()
        connected.finish_jobs()
        connected.sync()
        assert connected.queued(JobKind.PUSH) is not None

    def test_a_newer_version_than_the_one_that_was_pushed_is_pushed(self, connected: World) -> None:
        connected.learn(pets(8))
        connected.see_tasks({20: "cat"})
        connected.embed()
        connected.push()
        first = connected.active
        assert connected.project.pushed_version == first.name
        assert connected.learn(pets(4, start=9)) != first
        connected.finish_jobs()
        connected.sync()
        assert connected.queued(JobKind.PUSH) is not None


class TestProjects:
    def test_a_project_deleted_and_made_anew_is_another_one(self, connected: World) -> None:
        fill(connected, 8)
        connected.sync()
        connected.label_studio.identity = make_identity(created_stamp=1_800_000_000)
        connected.label_studio.tasks.clear()
        connected.label_studio.annotations.clear()
        said = "project 5 of Label Studio was deleted and made anew: tandem forget 5 removes what is kept of it"
        assert connected.sync() == said
        assert connected.project.problems == (said,)
        assert len(connected.annotations) == 8

    def test_a_deleted_project_is_said(self, connected: World) -> None:
        connected.gateway.projects.clear()
        said = connected.sync()
        assert said.startswith("project 5 of Label Studio is not there, or not for this LABEL_STUDIO_API_KEY")
        assert said.endswith("tandem forget 5 removes what is kept of it")
        assert connected.project.problems == (said,)

    def test_a_refusal_is_no_deletion(self, connected: World) -> None:
        connected.gateway.error = LabelStudioRejected("Label Studio answered with 403", status=403)
        with pytest.raises(LabelStudioRejected):
            connected.sync()
        assert connected.project.problems == ("Label Studio answered with 403",)

    def test_connected_projects_are_found_after_a_loss_of_all_state(self, world: World) -> None:
        found = world.reconciliation.discover()
        assert [project.id for project in found] == [PROJECT]
        assert world.project.title == "Pets"
        assert world.project.schema is not None
        assert world.queued(JobKind.SYNC) is not None

    def test_projects_of_other_backends_are_none_of_ours(self, world: World) -> None:
        world.label_studio.backends = {"http://other.test:9090": "Other"}
        assert world.reconciliation.discover() == []


class TestConnection:
    def test_a_missing_webhook_is_made(self, connected: World) -> None:
        connected.label_studio.webhooks.clear()
        connected.sync()
        assert [hook.url for hook in connected.label_studio.webhooks] == [WEBHOOK_URL]
        assert connected.project.problems == ()

    @pytest.mark.parametrize("fault", ["is_active", "sends_payload", "all_actions", "has_our_secret"])
    def test_a_wrong_webhook_is_repaired(self, connected: World, fault: str) -> None:
        hook = replace(make_webhook(WEBHOOK_URL + "/"), **{fault: False})
        connected.label_studio.webhooks[:] = [make_webhook("http://other.test/webhook", webhook_id=7), hook]
        connected.sync()
        assert connected.label_studio.webhooks[1] == make_webhook(WEBHOOK_URL + "/")
        assert connected.label_studio.webhooks[0] == make_webhook("http://other.test/webhook", webhook_id=7)

    def test_a_right_webhook_is_left_alone(self, connected: World) -> None:
        connected.sync()
        assert not {"create_webhook", "repair_webhook"} & set(connected.gateway.calls)

    def test_a_blocked_webhook_is_said_and_labels_still_come(self, connected: World) -> None:
        connected.label_studio.webhooks.clear()
        connected.gateway.no_webhooks = LabelStudioRejected("URL resolves to a reserved network address", status=403)
        fill(connected, 4)
        connected.sync()
        (problem,) = connected.project.problems
        assert "reserved network address" in problem
        assert "SSRF_PROTECTION_ENABLED=false" in problem
        assert len(connected.annotations) == 4

    def test_events_that_never_come_are_said(self, connected: World) -> None:
        fill(connected, 4)
        connected.sync()
        connected.clock.forward(60)
        fill(connected, 8)
        connected.sync()
        (problem,) = connected.project.problems
        assert "no event came" in problem
        assert WEBHOOK_URL in problem
        connected.clock.forward(60)
        connected.sync()
        assert connected.project.problems == ()

    def test_changes_that_came_beside_events_are_no_problem(self, connected: World) -> None:
        fill(connected, 4)
        connected.sync()
        connected.clock.forward(60)
        connected.ingestion.handle(TasksSeen(project=connected.snapshot, tasks=(make_task(5, "cat"),)))
        fill(connected, 8)
        connected.sync()
        assert connected.project.problems == ()

    def test_labels_come_though_the_webhooks_may_not_be_listed(self, connected: World) -> None:
        connected.gateway.hidden_webhooks = LabelStudioRejected("You do not have permission", status=403)
        fill(connected, 4)
        connected.sync()
        (problem,) = connected.project.problems
        assert "You do not have permission" in problem
        assert len(connected.annotations) == 4

    def test_without_a_public_url_the_webhook_cannot_be_checked(self, connected: World) -> None:
        blind = Reconciliation(
            connected.database, connected.gateway, connected.clock, connected.scheduler, public_url=None
        )
        fill(connected, 4)
        blind.run(PROJECT, connected.reports)
        assert "PUBLIC_URL" in connected.project.problems[0]
        assert len(connected.annotations) == 4
        assert blind.discover() == []

    def test_a_wrong_key_is_said_in_plain_words(self, connected: World) -> None:
        connected.gateway.error = LabelStudioUnauthorized("the API key was refused: make a new one")
        with pytest.raises(LabelStudioUnauthorized):
            connected.sync()
        assert connected.project.problems == ("the API key was refused: make a new one",)
        connected.gateway.error = None
        connected.sync()
        assert connected.project.problems == ()

    def test_without_an_api_key_nothing_fails_and_images_are_tried_again(self, connected: World) -> None:
        keyless = Reconciliation(connected.database, None, connected.clock, connected.scheduler, public_url=PUBLIC_URL)
        connected.images.contents[image_url("cat", 2)] = ImageNotFound("404")
        connected.see_tasks({2: "cat"})
        connected.embed()
        connected.finish_jobs()
        assert "LABEL_STUDIO_API_KEY" in keyless.run(PROJECT, connected.reports)
        assert "LABEL_STUDIO_API_KEY" in connected.project.problems[0]
        assert connected.queued(JobKind.EMBED) is not None
        assert keyless.discover() == []

    def test_a_config_of_several_classes_keeps_its_labels(self, connected: World) -> None:
        connected.label_studio.label_config = make_config("cat", "dog", multiple=True)
        connected.label_studio.tasks[1] = make_task(1)
        connected.label_studio.annotations[101] = make_annotation(101, 1, "cat", "dog")
        connected.sync()
        assert connected.annotations == {101: ("cat", "dog")}
