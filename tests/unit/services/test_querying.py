"""What is labelled next reaches Label Studio, and whoever changes a view keeps it as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backend.domain import AnnotationsSeen, Disclosure, JobKind, Sampling, TaskView, ViewKind
from backend.errors import ImageNotFound, LabelStudioUnavailable
from backend.services import querying
from tests.factories import image_url, make_annotation, make_config
from tests.world import PROJECT, World, pets

WRONG = 7


def view(world: World, title: str = "Label next") -> TaskView:
    return next(each for each in world.label_studio.views if each.title == title)


def shown(world: World, title: str = "Label next") -> set[int]:
    return set(view(world, title).task_ids or ())


def alter(world: World, **changes: object) -> None:
    """Change the view "Label next" by hand."""
    before = view(world)
    world.label_studio.views = [
        replace(each, **changes) if each is before else each  # type: ignore[arg-type]
        for each in world.label_studio.views
    ]


def cut_off(world: World, *, is_done: bool) -> Callable[[int, int, tuple[int, ...]], None]:
    """Return how a view is changed when the connection is lost, after Label Studio has done it or before."""
    update = world.gateway.update_view

    def update_view(project: int, view_id: int, task_ids: tuple[int, ...]) -> None:
        if is_done:
            update(project, view_id, task_ids)
        raise LabelStudioUnavailable("the connection was lost")

    return update_view


class TestTheBatch:
    def test_typical_images_before_the_first_label(self, world: World) -> None:
        world.see_tasks(pets(20))
        world.embed()
        world.query()
        assert len(shown(world)) == 4
        assert {task_id % 2 for task_id in shown(world)} == {0, 1}, "cats and dogs are both typical"

    def test_what_was_answered_is_not_asked_again(self, world: World) -> None:
        world.see_tasks(pets(6))
        world.embed()
        world.label({1: "dog", 2: (), 3: "dog"})
        world.query()
        assert shown(world) <= {4, 5, 6}

    def test_what_the_version_is_least_sure_of(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        class Doubting:
            def predict_proba(self, rows: np.ndarray) -> np.ndarray:
                sure = np.linspace(0.5, 0.99, len(rows))
                return np.stack([sure, 1 - sure], axis=1).astype(np.float32)

        world.learn(pets(24))
        world.see_tasks(pets(10, start=100) | {200: "bird", 201: "bird"})
        world.embed()
        monkeypatch.setattr(world.prediction, "predictor", lambda _version: Doubting())
        world.querying = world.new_querying(strategy="least_confident")
        world.query()
        by_doubt = sorted(
            (task.image_digest or "", task.id) for task in world.tasks.values() if task.id not in pets(24)
        )
        assert shown(world) <= {task_id for _, task_id in by_doubt[:6]}

    def test_images_without_features_are_not_asked(self, world: World) -> None:
        world.see_tasks(pets(3) | {4: "broken"})
        world.embed()
        world.see_tasks({5: "dog"})
        world.query()
        assert shown(world) == {1, 2, 3}

    def test_images_that_cannot_be_had_any_more_are_not_asked(self, world: World) -> None:
        world.learn(pets(6))
        world.see_tasks(pets(3, start=7))
        world.embed()
        gone = world.tasks[8]
        (world.folder / "images" / (gone.image_digest or "")).unlink()
        world.images.contents[gone.image_url or ""] = ImageNotFound("404")
        world.embedder.digest = "c" * 64
        world.embed()
        world.query()
        assert shown(world) == {7, 9}

    def test_what_repeats_a_skipped_image_is_asked_last(self, world: World) -> None:
        world.images.contents |= {image_url("cat", number): b"cat twin" for number in (2, 4)}
        world.see_tasks(pets(6))
        world.embed()
        world.label({2: ()})
        world.query()
        assert shown(world) == {1, 3, 5, 6}

    def test_chance_is_remembered(self, world: World) -> None:
        world.see_tasks(pets(20))
        world.embed()
        world.querying = world.new_querying(strategy="random")
        world.query()
        assert {task.id for task in world.tasks.values() if task.drawn_at_random} == shown(world)

    def test_no_open_task_is_left(self, world: World) -> None:
        world.see_tasks(pets(4))
        world.embed()
        world.query()
        assert shown(world) == {1, 2, 3, 4}
        world.label(pets(4))
        world.query()
        assert shown(world) == set()

    def test_nothing_is_embedded_yet(self, world: World) -> None:
        world.see_tasks(pets(4))
        assert "no image is embedded" in world.query()
        assert world.label_studio.views == []

    def test_a_label_config_that_is_not_supported(self, world: World) -> None:
        world.see_tasks(pets(4))
        world.embed()
        world.configure(replace(make_config(), schema=None, problem="no Choices"))
        assert "the label config is not supported" in world.query()


class TestTheViews:
    @pytest.fixture(autouse=True)
    def pool(self, world: World) -> None:
        world.see_tasks(pets(20))
        world.embed()
        world.query()

    @pytest.mark.parametrize("is_done", [False, True])
    def test_changes_that_were_cut_off_twice_are_none_by_hand(
        self, world: World, monkeypatch: pytest.MonkeyPatch, is_done: bool
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(world.gateway, "update_view", cut_off(world, is_done=is_done))
            for n_labels in (8, 12):
                world.label(pets(n_labels))
                with pytest.raises(LabelStudioUnavailable):
                    world.query()
        world.label(pets(14))
        assert "by hand" not in world.query()
        assert shown(world) <= set(range(15, 21))

    def test_all_tasks_stay_in_sight(self, world: World) -> None:
        assert [each.title for each in world.label_studio.views] == ["Default", "Label next"]

    def test_the_view_follows(self, world: World) -> None:
        first = shown(world)
        world.label({task_id: pets(20)[task_id] for task_id in first})
        world.query()
        assert shown(world)
        assert not shown(world) & first

    def test_nothing_is_written_while_nothing_changes(self, world: World) -> None:
        world.gateway.calls.clear()
        world.query()
        assert world.gateway.calls == ["views"]

    def test_a_renamed_view_follows_too(self, world: World) -> None:
        alter(world, title="Mine")
        world.label(pets(8))
        world.query()
        assert shown(world, "Mine") <= set(range(9, 21))

    @pytest.mark.parametrize("task_ids", [None, frozenset({1, 2})])
    def test_a_view_that_was_changed_is_left_alone(self, world: World, task_ids: frozenset[int] | None) -> None:
        before = view(world).task_ids
        alter(world, task_ids=task_ids)
        world.label(pets(8))
        assert "changed or deleted by hand" in world.query()
        assert view(world).task_ids == task_ids
        alter(world, task_ids=before)
        world.query()
        assert view(world).task_ids == before, "it is theirs for good"

    def test_a_view_that_was_deleted_stays_away(self, world: World) -> None:
        world.label_studio.views = []
        for _ in range(2):
            assert "changed or deleted by hand" in world.query()
        assert world.label_studio.views == []

    @pytest.mark.parametrize("is_done", [False, True])
    def test_a_change_that_was_cut_off_is_no_change_by_hand(
        self, world: World, monkeypatch: pytest.MonkeyPatch, is_done: bool
    ) -> None:
        world.label(pets(8))
        with monkeypatch.context() as patch:
            patch.setattr(world.gateway, "update_view", cut_off(world, is_done=is_done))
            with pytest.raises(LabelStudioUnavailable):
                world.query()
        world.label(pets(10))
        world.query()
        assert shown(world)
        assert shown(world) <= set(range(11, 21))

    def test_a_view_that_all_memory_of_was_lost_is_taken_up_again(self, world: World, second_world: World) -> None:
        second_world.label_studio.views = list(world.label_studio.views)
        second_world.see_tasks(pets(6))
        second_world.embed()
        second_world.query()
        assert [each.title for each in second_world.label_studio.views] == ["Default", "Label next"]
        assert shown(second_world) <= set(range(1, 7))

    def test_it_is_followed_though_it_shows_the_right_tasks_already(self, world: World, second_world: World) -> None:
        second_world.label_studio.views = list(world.label_studio.views)
        second_world.see_tasks(pets(20))
        second_world.embed()
        second_world.query()
        second_world.label(pets(8))
        assert "by hand" not in second_world.query()
        assert shown(second_world) <= set(range(9, 21))


class TestSampling:
    def test_the_label_stream_asks_what_is_uncertain(self, world: World) -> None:
        world.see_tasks(pets(6))
        world.embed()
        world.query()
        assert world.label_studio.sampling is Sampling.UNCERTAINTY
        world.label_studio.sampling = Sampling.SEQUENTIAL
        world.label(pets(2))
        world.query()
        assert world.label_studio.sampling is Sampling.SEQUENTIAL, "somebody wants it so"

    def test_it_is_not_switched_again_after_a_loss_of_all_memory(self, world: World, second_world: World) -> None:
        for each in (world, second_world):
            each.see_tasks(pets(6))
            each.embed()
        world.query()
        second_world.label_studio.views = list(world.label_studio.views)
        second_world.query()
        assert second_world.label_studio.sampling is Sampling.SEQUENTIAL

    def test_what_somebody_chose_stays(self, world: World) -> None:
        world.label_studio.sampling = Sampling.UNIFORM
        world.see_tasks(pets(6))
        world.embed()
        world.query()
        assert world.label_studio.sampling is Sampling.UNIFORM


def learn_with_wrong_labels(world: World, *dogs: int) -> None:
    """Label 24 of 30 pets, some dogs among them as cats, and learn from that."""
    world.see_tasks(pets(30))
    world.label(pets(24) | dict.fromkeys(dogs, "cat"))
    world.embed()
    world.fit()


class TestLabelsToCheck:
    def test_a_wrong_label_is_shown_until_somebody_looked_at_it(self, world: World) -> None:
        learn_with_wrong_labels(world, WRONG)
        world.query()
        assert shown(world, "Check these labels") == {WRONG}
        assert WRONG not in shown(world)
        looked_at = make_annotation(100 + WRONG, WRONG, "cat", updated_at=world.clock.forward(1), ground_truth=True)
        world.ingestion.handle(AnnotationsSeen(project=world.snapshot, tasks=(), annotations=(looked_at,)))
        world.query()
        assert shown(world, "Check these labels") == set()

    def test_what_is_surest_comes_last_to_be_labelled_and_first_to_be_checked(self, world: World) -> None:
        learn_with_wrong_labels(world, WRONG)
        world.query()
        assert world.label_studio.least_sure_first == {"Label next": True, "Check these labels": False}

    def test_no_more_are_shown_than_somebody_would_look_at(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(querying, "N_SUSPECTS", 1)
        learn_with_wrong_labels(world, WRONG, WRONG + 2)
        suspects = world.review.suspects(PROJECT).suspects
        assert {each.task_id for each in suspects} == {WRONG, WRONG + 2}
        world.query()
        assert shown(world, "Check these labels") == {suspects[0].task_id}

    def test_what_a_suspect_should_be_is_suggested_once(self, world: World) -> None:
        learn_with_wrong_labels(world, WRONG)
        world.query()
        assert world.label_studio.predictions == [], "nothing was pushed yet, and perhaps never will be"
        for _ in range(2):
            world.push()
            world.query()
            (suggestion,) = [each for each in world.label_studio.predictions if each.task_id == WRONG]
            assert (suggestion.class_names, suggestion.version) == (("dog",), world.active.name)
            assert 0.5 < suggestion.score <= 1
        world.label({25: "dog", 26: "cat"})
        world.fit()
        world.query()
        world.push()
        assert {each.version for each in world.label_studio.predictions} == {world.active.name}
        assert [each.class_names for each in world.label_studio.predictions if each.task_id == WRONG] == [("dog",)]

    def test_what_is_held_back_is_not_suggested_here_either(self, world: World) -> None:
        world.prediction = world.new_prediction(Disclosure(audit_share=1.0))
        world.querying = world.new_querying()
        learn_with_wrong_labels(world, WRONG)
        world.push()
        world.query()
        (suggestion,) = [each for each in world.label_studio.predictions if each.task_id == WRONG]
        assert suggestion.class_names == ()

    def test_no_view_before_there_is_a_suspect(self, world: World) -> None:
        world.learn(pets(24))
        world.query()
        assert [each.title for each in world.label_studio.views] == ["Default", "Label next"]


class TestWhenItRuns:
    def test_switched_off(self, world: World) -> None:
        world.see_tasks(pets(6))
        world.embed()
        world.querying = world.new_querying(enabled=False)
        assert "LABELLING_VIEWS is off" in world.query()
        assert world.gateway.calls == []

    def test_while_images_are_embedded_and_labels_are_few(self, world: World) -> None:
        world.see_tasks(pets(6))
        world.embed()
        assert world.queued(JobKind.QUERY)
        world.finish_jobs()
        world.label({1: "dog"})
        assert world.queued(JobKind.QUERY)

    def test_with_each_push_later(self, world: World) -> None:
        world.learn(pets(6))
        assert world.run_after(JobKind.QUERY) == world.run_after(JobKind.PUSH)
        world.finish_jobs()
        world.label({7: "dog"})
        assert world.queued(JobKind.QUERY) is None


def test_the_same_state_gives_the_same_batch(world: World) -> None:
    world.see_tasks(pets(20))
    world.embed()
    batches = []
    for _ in range(2):
        world.query()
        batches.append(shown(world))
        with world.database.transaction() as stores:
            kept = stores.views.get(PROJECT, ViewKind.LABEL_NEXT)
            assert kept
            assert not kept.released
    assert batches[0] == batches[1]
    assert np.size(list(batches[0])) == 4
