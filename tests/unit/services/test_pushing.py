"""Label Studio holds the active version's suggestions for what is unlabelled, and nothing old of ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from backend.domain import JobKind, LabelConfig, LabelSchema, Suggestion
from backend.errors import CheckpointCorrupt, LabelStudioRejected, LabelStudioUnavailable
from backend.promotion import version_key
from tests.factories import make_config, make_schema, make_snapshot
from tests.world import PROJECT, PUBLIC_URL, World, pets


@pytest.fixture
def labelled(world: World) -> World:
    """Tasks 1 to 8 are labelled, 9 to 14 the pool; the first version is active."""
    world.see_tasks(pets(14))
    world.label(pets(8))
    world.embed()
    world.fit()
    return world


def stored(world: World) -> dict[int, str]:
    """The version of each task's prediction in Label Studio; a task may have one only."""
    of_task = Counter(each.task_id for each in world.label_studio.predictions)
    assert set(of_task.values()) <= {1}
    return {each.task_id: each.version for each in world.label_studio.predictions}


def live_answer(world: World, task_id: int) -> None:
    """Somebody opens a task, and Label Studio stores what /predict answers."""
    answer = world.predict(world.tasks[task_id])
    world.label_studio.predictions += [each for each in answer.results if isinstance(each, Suggestion)]


class TestPush:
    def test_every_unlabelled_task_gets_its_suggestion(self, labelled: World) -> None:
        name = labelled.active.name
        assert labelled.push() == f"6 suggestions of {name} pushed"
        assert stored(labelled) == dict.fromkeys(range(9, 15), name)
        assert labelled.label_studio.model_version == name
        assert labelled.project.pushed_version == name
        for suggestion in labelled.label_studio.predictions:
            assert suggestion.class_names == (pets(14)[suggestion.task_id],)
            assert 0 < suggestion.score <= 1

    def test_nothing_new_is_pushed_twice(self, labelled: World) -> None:
        labelled.push()
        labelled.gateway.calls.clear()
        assert labelled.push().startswith("0 suggestions")
        assert not {"import_predictions", "set_model_version", "delete_predictions"} & set(labelled.gateway.calls)

    def test_a_task_that_got_its_label_has_nothing_pushed_twice(self, labelled: World) -> None:
        labelled.push()
        labelled.label({9: "dog"})
        labelled.gateway.calls.clear()
        labelled.push()
        assert not {"import_predictions", "delete_predictions"} & set(labelled.gateway.calls)

    def test_the_version_in_use_keeps_its_suggestions_while_the_new_one_has_none(self, labelled: World) -> None:
        labelled.push()
        first = labelled.active
        labelled.label({task_id: name for task_id, name in pets(14).items() if task_id > 8})
        labelled.fit()
        assert labelled.active.number == 2
        assert labelled.push().startswith("0 suggestions")
        assert labelled.label_studio.model_version == first.name
        assert stored(labelled) == dict.fromkeys(range(9, 15), first.name)

    def test_a_new_task_gets_its_suggestion_too(self, labelled: World) -> None:
        labelled.push()
        labelled.see_tasks({15: "cat"})
        labelled.embed()
        assert labelled.push().startswith("1 suggestions")
        assert set(stored(labelled)) == set(range(9, 16))

    def test_a_new_version_replaces_the_old_one(self, labelled: World) -> None:
        labelled.push()
        labelled.label({9: "dog", 10: "cat"})
        labelled.fit()
        labelled.push()
        assert labelled.active.number == 2
        assert stored(labelled) == dict.fromkeys(range(11, 15), labelled.active.name)
        assert labelled.label_studio.model_version == labelled.active.name

    def test_after_a_rollback_the_old_version_is_back(self, labelled: World) -> None:
        first = labelled.active
        labelled.push()
        labelled.label({9: "dog"})
        labelled.fit()
        labelled.push()
        labelled.unlabel(9)
        labelled.promoting.rollback(PROJECT, first.name)
        labelled.push()
        assert stored(labelled) == dict.fromkeys(range(9, 15), first.name)
        assert labelled.label_studio.model_version == first.name

    def test_images_without_features_are_left_out(self, labelled: World) -> None:
        labelled.images.contents["/data/upload/5/cat-16.png"] = b"broken file"
        labelled.see_tasks({16: "cat"})
        labelled.embed()
        labelled.push()
        assert 16 not in stored(labelled)

    def test_a_project_without_unlabelled_tasks_keeps_its_pointer(self, world: World) -> None:
        world.learn(pets(8))
        assert "0 suggestions" in world.push()
        assert world.label_studio.model_version == "Tandem"


class TestInterruptions:
    def test_a_push_cut_off_before_it_was_recorded_leaves_no_task_with_two(self, labelled: World) -> None:
        def cut_off() -> None:
            raise LabelStudioUnavailable("no answer")

        labelled.gateway.after_import = cut_off
        with pytest.raises(LabelStudioUnavailable):
            labelled.push()
        assert labelled.label_studio.model_version == "Tandem"
        labelled.gateway.after_import = lambda: None
        labelled.push()
        assert set(stored(labelled)) == set(range(9, 15))

    def test_an_answer_to_a_live_request_leaves_no_task_with_two(self, labelled: World) -> None:
        live_answer(labelled, 9)
        labelled.push()
        assert set(stored(labelled)) == set(range(9, 15))

    def test_starting_over_brings_back_what_was_pushed_before(self, labelled: World) -> None:
        labelled.push()
        labelled.see_tasks({15: "cat"})
        live_answer(labelled, 15)
        labelled.embed()
        labelled.push()
        assert set(stored(labelled)) == set(range(9, 16))
        assert labelled.label_studio.model_version == labelled.active.name

    def test_predictions_deleted_by_hand_come_back(self, labelled: World) -> None:
        labelled.push()
        labelled.gateway.delete_predictions(PROJECT, labelled.active.name)
        labelled.push()
        assert set(stored(labelled)) == set(range(9, 15))
        assert labelled.label_studio.model_version == labelled.active.name

    def test_a_pointer_moved_but_not_recorded_is_recorded(self, labelled: World) -> None:
        labelled.push()
        with labelled.database.transaction() as stores:
            stores.projects.save(replace(labelled.project, pushed_version=None))
        labelled.push()
        assert labelled.project.pushed_version == labelled.active.name

    def test_a_pointer_that_was_moved_is_recorded_though_the_old_suggestions_stay(
        self, labelled: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise LabelStudioRejected("Label Studio answered with 403", status=403)

        labelled.push()
        labelled.label({9: "dog", 10: "cat"})
        labelled.fit()
        monkeypatch.setattr(labelled.gateway, "delete_predictions", refuse)
        with pytest.raises(LabelStudioRejected):
            labelled.push()
        assert labelled.label_studio.model_version == labelled.project.pushed_version == labelled.active.name

    def test_an_unreadable_version_says_so(self, labelled: World) -> None:
        labelled.artifacts.delete(version_key(PROJECT, labelled.active.name))
        with pytest.raises(CheckpointCorrupt):
            labelled.push()
        assert stored(labelled) == {}


class TestOtherPeoplesChoices:
    def test_pre_annotation_switched_off_stays_off(self, labelled: World) -> None:
        labelled.label_studio.model_version = ""
        assert labelled.push().endswith("; project uses another")
        assert labelled.label_studio.model_version == ""

    def test_a_pointer_that_was_cleared_is_set(self, labelled: World) -> None:
        labelled.label_studio.model_version = None
        labelled.push()
        assert labelled.label_studio.model_version == labelled.active.name

    def test_imported_predictions_somebody_chose_stay_chosen(self, labelled: World) -> None:
        theirs = Suggestion(task_id=9, class_names=("cat",), score=0.5, version="gpt-7")
        labelled.label_studio.predictions.append(theirs)
        labelled.label_studio.model_version = "gpt-7"
        assert labelled.push().endswith("; project uses another")
        assert labelled.label_studio.model_version == "gpt-7"

    def test_another_backend_somebody_chose_stays_chosen(self, labelled: World) -> None:
        labelled.label_studio.backends["http://detector.test:9090"] = "Detector"
        labelled.label_studio.model_version = "Detector"
        assert labelled.push().endswith("; project uses another")
        assert labelled.label_studio.model_version == "Detector"

    def test_a_backend_of_ours_is_followed_by_its_version(self, labelled: World) -> None:
        labelled.label_studio.backends |= {PUBLIC_URL: "Twin", "http://detector.test:9090": "Twin"}
        labelled.label_studio.model_version = "Twin"
        labelled.push()
        assert labelled.label_studio.model_version == labelled.active.name

    def test_without_a_public_url_every_backend_may_be_ours(self, labelled: World) -> None:
        labelled.label_studio.backends["http://detector.test:9090"] = "Detector"
        labelled.label_studio.model_version = "Detector"
        labelled.new_pushing(public_url=None).run(PROJECT, labelled.reports)
        assert labelled.label_studio.model_version == labelled.active.name

    @pytest.mark.parametrize("pointer", ["", "gpt-7"])
    def test_what_nobody_chose_does_not_pile_up(self, labelled: World, pointer: str) -> None:
        theirs = Suggestion(task_id=9, class_names=("cat",), score=0.5, version="gpt-7")
        labelled.label_studio.predictions.append(theirs)
        labelled.label_studio.model_version = pointer
        labelled.push()
        labelled.label({9: "dog", 10: "cat"})
        labelled.fit()
        labelled.push()
        assert {each.version for each in labelled.label_studio.predictions} == {"gpt-7", labelled.active.name}
        assert labelled.label_studio.model_version == pointer

    def test_only_what_is_ours_is_cleared_away(self, labelled: World) -> None:
        others = ["gpt-7", "p51-v1-00000000", "p5-v1-00000000-better"]
        ours = ["p5-v0-untrained", "p5-v7-0000aaaa"]
        labelled.label_studio.predictions += [
            Suggestion(task_id=1, class_names=("cat",), score=0.5, version=version) for version in others + ours
        ]
        labelled.push()
        assert {each.version for each in labelled.label_studio.predictions} == {*others, labelled.active.name}


class TestChangedLabelConfig:
    """What was pushed may be no label any more: the editor shows nothing of it, and submits it all the same."""

    @pytest.fixture
    def pushed(self, labelled: World) -> World:
        labelled.push()
        labelled.finish_jobs()
        return labelled

    @pytest.mark.parametrize("schema", [make_schema("cat", "hound"), replace(make_schema(), control_name="animal")])
    def test_suggestions_of_before_are_replaced(self, pushed: World, schema: LabelSchema) -> None:
        pushed.configure(LabelConfig(schema=schema))
        assert pushed.queued(JobKind.PUSH) is not None
        pushed.gateway.calls.clear()
        pushed.push()
        assert {"delete_predictions", "import_predictions"} <= set(pushed.gateway.calls)
        suggested = {name for each in pushed.label_studio.predictions for name in each.class_names}
        assert suggested <= set(schema.class_names)

    @pytest.mark.parametrize("is_asked", [True, False])
    def test_they_are_replaced_though_the_event_was_missed(self, pushed: World, is_asked: bool) -> None:
        pushed.label_studio.label_config = make_config("cat", "hound")
        if is_asked:
            pushed.prediction.predict(make_snapshot(make_config("cat", "hound")), [pushed.tasks[9]])
        else:
            pushed.sync()
        assert pushed.queued(JobKind.PUSH) is not None

    def test_they_stay_where_classes_are_only_added(self, pushed: World) -> None:
        pushed.configure(make_config("cat", "dog", "bird"))
        assert pushed.queued(JobKind.PUSH) is None


class TestNothingToPush:
    def test_without_a_version(self, world: World) -> None:
        world.see_tasks(pets(3))
        assert world.push().startswith("nothing to push")
        assert world.gateway.calls == []

    def test_with_an_unsupported_config(self, labelled: World) -> None:
        labelled.ingestion.setup(make_snapshot(LabelConfig(problem="there is no Choices control")))
        assert labelled.push().startswith("nothing to push")

    def test_with_classes_that_are_all_new(self, labelled: World) -> None:
        labelled.configure(make_config("owl", "eagle"))
        labelled.push()
        assert all(not names for names in {each.class_names for each in labelled.label_studio.predictions})

    def test_without_an_api_key_or_switched_off(self, labelled: World) -> None:
        keyless = labelled.new_pushing(with_gateway=False)
        assert "LABEL_STUDIO_API_KEY are not set" in keyless.run(PROJECT, labelled.reports)
        off = labelled.new_pushing(enabled=False)
        assert off.run(PROJECT, labelled.reports) == "nothing pushed: PUSH_PREDICTIONS is off"
        assert labelled.gateway.calls == []
