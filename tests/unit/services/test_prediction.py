"""N suggestions for N tasks, whatever is missing or broken."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from backend.adapters.features import FeatureFiles
from backend.domain import Disclosure, JobKind, LabelConfig, NoSuggestion, Suggestion, Task, TasksDeleted
from backend.errors import CheckpointCorrupt, Conflict, ImageNotFound, ImageUnavailable, NotFound, StoreUnavailable
from backend.promotion import version_key
from backend.services.prediction import Answer
from tests.factories import NOON, image_url, make_config, make_snapshot, make_task
from tests.world import PROJECT, World, pets


def reasons(answer: Answer) -> list[str]:
    return [result.reason for result in answer.results if isinstance(result, NoSuggestion)]


class TestSuggestions:
    def test_as_many_as_tasks_in_their_order(self, world: World) -> None:
        active = world.learn(pets(12))
        asked = [make_task(7, "dog"), make_task(2, "cat"), make_task(1, "dog"), make_task(2, "cat")]
        answer = world.predict(*asked)
        assert [result.task_id for result in answer.results] == [7, 2, 1, 2]
        assert answer.schema == world.project.schema
        for task, result in zip(asked, answer.results, strict=True):
            assert isinstance(result, Suggestion)
            assert result.version == active.name
            assert 0.5 < result.score <= 1
            assert result.class_names == (pets(12)[task.id],)

    def test_annotators_see_nothing_before_a_version_is_good_enough(self, world: World) -> None:
        active = world.learn(pets(12))
        shown = world.predict(make_task(2)).results[0]
        world.prediction = world.new_prediction(Disclosure(min_accuracy=active.metrics.accuracy))
        assert world.predict(make_task(2)).results[0] == shown
        world.prediction = world.new_prediction(Disclosure(min_accuracy=1.01))
        assert world.predict(make_task(2)).results[0] == replace(shown, class_names=())

    def test_an_audited_image_keeps_its_score_only(self, world: World) -> None:
        world.learn(pets(40))
        world.prediction = world.new_prediction(Disclosure(audit_share=0.3))
        results = world.predict(*(make_task(task_id, name) for task_id, name in pets(40).items())).results
        hidden = [result.task_id for result in results if isinstance(result, Suggestion) and not result.class_names]
        assert 4 <= len(hidden) <= 20
        assert all(isinstance(result, Suggestion) and result.score > 0.5 for result in results)
        world.prediction = world.new_prediction(Disclosure(audit_share=0.6))
        results = world.predict(*(make_task(task_id, name) for task_id, name in pets(40).items())).results
        hidden_too = {each.task_id for each in results if isinstance(each, Suggestion) and not each.class_names}
        assert set(hidden) < hidden_too, "the same images, and more of them"

    def test_known_images_need_no_embedder(self, world: World) -> None:
        world.learn(pets(12))
        world.embedder.down = True
        assert reasons(world.predict(make_task(2), make_task(4))) == []

    def test_with_one_image_those_stored_next_to_it_are_scored(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.learn(pets(12))
        expected = world.predict(*(make_task(task_id, name) for task_id, name in pets(12).items())).results
        world.prediction = world.new_prediction()
        world.predict(make_task(2))
        monkeypatch.delattr(FeatureFiles, "read")
        monkeypatch.delattr(FeatureFiles, "read_around")
        one_by_one = [world.predict(make_task(task_id, name)).results[0] for task_id, name in pets(12).items()]
        for alone, together in zip(one_by_one, expected, strict=True):
            assert isinstance(alone, Suggestion)
            assert isinstance(together, Suggestion)
            assert replace(alone, score=0) == replace(together, score=0)
            assert alone.score == pytest.approx(together.score, rel=1e-5)

    def test_what_was_scored_ahead_is_disclosed_for_each_image_by_itself(self, world: World) -> None:
        world.learn(pets(40))
        world.prediction = world.new_prediction(Disclosure(audit_share=0.3))
        asked = [make_task(task_id, name) for task_id, name in pets(40).items()]
        together = world.predict(*asked).results
        one_by_one = [world.predict(task).results[0] for task in asked]
        assert [isinstance(each, Suggestion) and each.class_names for each in one_by_one] == [
            isinstance(each, Suggestion) and each.class_names for each in together
        ]

    def test_a_version_is_loaded_once(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.learn(pets(12))
        world.prediction = world.new_prediction()
        fetched: list[str] = []
        fetch = world.artifacts.fetch
        monkeypatch.setattr(world.artifacts, "fetch", lambda key: fetched.append(key) or fetch(key))
        for task_id in pets(12):
            assert reasons(world.predict(make_task(task_id))) == []
        assert fetched == [version_key(PROJECT, world.active.name)]

    def test_an_image_never_seen_is_embedded_on_the_spot_and_kept(self, world: World) -> None:
        world.learn(pets(12))
        world.finish_jobs()
        answer = world.predict(make_task(20, "cat"))
        assert isinstance(answer.results[0], Suggestion)
        assert answer.results[0].class_names == ("cat",)
        assert world.tasks[20].backbone_digest == world.active.backbone_digest

    def test_a_task_that_no_event_told_of_is_known_from_then_on(self, world: World) -> None:
        world.predict(make_task(20))
        assert world.tasks == {20: make_task(20)}
        assert world.queued(JobKind.EMBED) is not None
        assert world.project.predict_at == NOON

    def test_an_empty_request_gets_an_empty_answer(self, world: World) -> None:
        world.learn(pets(12))
        assert world.predict().results == ()

    def test_the_newest_version_answers(self, world: World) -> None:
        world.learn(pets(8))
        world.predict(make_task(2))
        second = world.learn(pets(8, start=9))
        result = world.predict(make_task(2)).results[0]
        assert isinstance(result, Suggestion)
        assert result.version == second.name

    def test_a_task_that_shows_another_image_now_does_not_get_the_old_suggestion(self, world: World) -> None:
        world.learn(pets(12))
        result = world.predict(make_task(2, "dog")).results[0]
        assert isinstance(result, Suggestion)
        assert result.class_names == ("dog",)
        assert world.tasks[2].image_url == image_url("dog", 2)

    def test_many_requests_at_once(self, world: World) -> None:
        """Label Studio asks twice for the same task when somebody opens it."""
        world.learn(pets(12))
        answers: list[Answer] = []
        asked = [make_task(task_id, "cat") for task_id in range(50, 60)]
        threads = [threading.Thread(target=lambda: answers.append(world.predict(*asked))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 8
        assert len({answer.results for answer in answers}) == 1
        assert reasons(answers[0]) == []

    def test_a_changed_config_shows_in_the_request_when_its_event_was_missed(self, world: World) -> None:
        world.learn(pets(12))
        world.finish_jobs()
        config = make_config("dog", "bird")
        answer = world.prediction.predict(make_snapshot(config), [make_task(2, "cat"), make_task(3, "dog")])
        assert world.project.label_config == config
        assert world.queued(JobKind.SYNC) is not None
        assert world.queued(JobKind.HEAD) is not None
        assert [result.class_names for result in answer.results if isinstance(result, Suggestion)] == [("dog",)] * 2


class TestKnownQuestions:
    """Questions that tell nothing new only read."""

    def test_they_write_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.learn(pets(12))
        world.predict(make_task(2))
        monkeypatch.delattr(SqlDatabase, "transaction")
        assert reasons(world.predict(make_task(2), make_task(4))) == []

    def test_a_rollback_in_another_process_shows_at_once(self, world: World) -> None:
        first, second = world.learn(pets(8)), world.learn(pets(8, start=9))
        elsewhere = SqlDatabase(f"sqlite:///{world.folder / 'tandem.sqlite3'}")
        for active in (second, first, second):
            with elsewhere.transaction() as stores:
                stores.versions.activate(PROJECT, active.name, "tested")
            for _ in range(2):
                result = world.predict(make_task(2)).results[0]
                assert isinstance(result, Suggestion)
                assert result.version == active.name
        elsewhere.close()

    def test_a_task_deleted_meanwhile_becomes_known_again(self, world: World) -> None:
        world.learn(pets(12))
        world.predict(make_task(2))
        world.ingestion.handle(TasksDeleted(project=world.snapshot, task_ids=(2,)))
        assert 2 not in world.tasks
        assert reasons(world.predict(make_task(2))) == []
        assert 2 in world.tasks

    def test_when_somebody_last_asked_is_known_to_the_minute(self, world: World) -> None:
        world.learn(pets(12))
        for seconds, minutes in ((30, 0), (45, 1), (10, 1)):
            world.clock.forward(seconds)
            world.predict(make_task(2))
            assert world.project.predict_at == NOON + timedelta(minutes=minutes)


class TestNoSuggestions:
    def test_before_the_first_version(self, world: World) -> None:
        tasks = world.see_tasks(pets(3))
        assert reasons(world.predict(*tasks)) == ["there is no version yet: label some more images"] * 3

    def test_an_unsupported_config(self, world: World) -> None:
        world.learn(pets(12))
        config = LabelConfig(problem="there is no Choices control")
        answer = world.prediction.predict(make_snapshot(config), [make_task(2)])
        assert answer.schema is None
        assert reasons(answer) == ["there is no Choices control"]

    def test_classes_that_are_all_new(self, world: World) -> None:
        active = world.learn(pets(12))
        world.configure(make_config("owl", "eagle"))
        assert reasons(world.predict(make_task(2))) == [
            f"{active.name} knows none of the classes in the label config: label some images with them"
        ]

    def test_a_bad_image_costs_only_itself(self, world: World) -> None:
        world.learn(pets(12))
        world.images.contents[image_url("cat", 20)] = ImageNotFound("404")
        world.images.contents[image_url("cat", 21)] = b"broken file"
        asked = [make_task(number) for number in (20, 21, 22)]
        answer = world.predict(*asked, Task(id=23, image_url=None))
        assert [result.task_id for result in answer.results] == [20, 21, 22, 23]
        assert reasons(answer) == ["404", "not an image", "it has no image where the label config looks for one"]
        assert isinstance(answer.results[2], Suggestion)

    def test_the_embedder_being_down_is_no_error(self, world: World) -> None:
        world.learn(pets(12))
        world.embedder.down = True
        answer = world.predict(make_task(20), make_task(21))
        assert reasons(answer) == ["the embedding process is not up yet: try again shortly"] * 2

    def test_images_out_of_reach_are_no_error(self, world: World) -> None:
        world.learn(pets(12))
        for number in (20, 21):
            world.images.contents[image_url("cat", number)] = ImageUnavailable("no answer")
        assert len(reasons(world.predict(make_task(20), make_task(21)))) == 2

    @pytest.mark.parametrize("damage", ["altered", "gone"])
    def test_an_active_version_that_cannot_be_read_is_no_error_and_is_replaced(self, world: World, damage: str) -> None:
        active = world.learn(pets(12))
        world.finish_jobs()
        key = version_key(PROJECT, active.name)
        if damage == "gone":
            world.artifacts.delete(key)
        else:
            (world.artifacts.fetch(key) / "head.safetensors").write_bytes(b"evil")
        world.prediction = world.new_prediction()
        assert reasons(world.predict(make_task(2))) == [f"{active.name} cannot be read and is being replaced"]
        assert world.queued(JobKind.HEAD) is not None
        world.fit()
        assert reasons(world.predict(make_task(2))) == []


class TestAStorageFarAway:
    def test_who_asks_for_a_loaded_version_waits_for_no_other(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = world.learn(pets(12))
        loaded = world.prediction.predictor(first)
        world.label({1: "cat"})
        world.fit()
        asked, answered = threading.Event(), threading.Event()

        def fetch(_: str) -> Path:
            asked.set()
            assert answered.wait(30)
            raise StoreUnavailable("the storage does not answer")

        monkeypatch.setattr(world.artifacts, "fetch", fetch)
        errors: list[StoreUnavailable] = []

        def load() -> None:
            try:
                world.prediction.predictor(world.active)
            except StoreUnavailable as error:
                errors.append(error)

        waiting = threading.Thread(target=load)
        waiting.start()
        assert asked.wait(30)
        assert world.prediction.predictor(first) is loaded
        answered.set()
        waiting.join()
        assert len(errors) == 1


class TestFiles:
    def files(self, world: World, *contents: bytes) -> list[Path]:
        paths = [world.folder / f"{number}.png" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return paths

    def test_each_file_has_its_answer(self, world: World) -> None:
        world.learn(pets(12))
        paths = self.files(world, b"cat 77", b"broken", b"dog 78")
        results = world.prediction.predict_files(PROJECT, paths, world.embedder)
        assert [result.class_names if isinstance(result, Suggestion) else result.reason for result in results] == [
            ("cat",),
            "not an image",
            ("dog",),
        ]
        assert set(world.tasks) == set(pets(12))

    def test_nothing_is_held_back_from_who_asks_for_files(self, world: World) -> None:
        world.learn(pets(12))
        prediction = world.new_prediction(Disclosure(min_accuracy=1.01, audit_share=1))
        (result,) = prediction.predict_files(PROJECT, self.files(world, b"cat 77"), world.embedder)
        assert isinstance(result, Suggestion)
        assert result.class_names == ("cat",)

    def test_what_is_missing_is_said(self, world: World) -> None:
        with pytest.raises(NotFound):
            world.prediction.predict_files(PROJECT, [], world.embedder)
        world.see_tasks(pets(2))
        with pytest.raises(Conflict, match="no version yet"):
            world.prediction.predict_files(PROJECT, [], world.embedder)
        active = world.learn(pets(12))
        world.artifacts.delete(version_key(PROJECT, active.name))
        with pytest.raises(CheckpointCorrupt, match=active.name):
            world.prediction.predict_files(PROJECT, self.files(world, b"cat 1"), world.embedder)
