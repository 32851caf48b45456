"""Before the first version: classes that the backbone knows by name are suggested, and make way for what is learned.

Tasks are pictures of cats and dogs, which the pretrained classifier knows, and of birds and parrots, which are birds to
it; birds are no class of the project.
"""

from __future__ import annotations

from collections import Counter

import pytest

from backend.domain import Disclosure, JobKind, NoSuggestion, Sampling, Suggestion
from backend.errors import EmbedderUnavailable
from backend.pretrained import is_pretrained_name
from tests.factories import make_config, make_task
from tests.world import PROJECT, World, pets

CATEGORIES = ("bird", "cat", "dog")


@pytest.fixture
def embedded(world: World) -> World:
    """Eight tasks with cats and dogs and one with a bird, all embedded; nothing is labelled."""
    world.embedder.categories = CATEGORIES
    world.configure(make_config("cat", "dog", "parrot"))
    world.see_tasks(pets(8) | {9: "bird"})
    world.embed()
    return world


def version_of(world: World) -> str:
    return world.ingestion.setup(world.snapshot)


def stored(world: World) -> dict[int, str]:
    """The version of each task's prediction in Label Studio; a task may have one only."""
    assert set(Counter(each.task_id for each in world.label_studio.predictions).values()) <= {1}
    return {each.task_id: each.version for each in world.label_studio.predictions}


class TestPrediction:
    def test_classes_known_by_name_are_suggested(self, embedded: World) -> None:
        name = version_of(embedded)
        assert is_pretrained_name(PROJECT, name)
        for task_id, pet in pets(8).items():
            (result,) = embedded.predict(make_task(task_id, pet)).results
            assert isinstance(result, Suggestion)
            assert (result.class_names, result.version) == ((pet,), name)
            assert 0.5 < result.score <= 1

    def test_an_image_of_what_is_no_class_gets_none_and_a_low_score(self, embedded: World) -> None:
        (result,) = embedded.predict(make_task(9, "bird")).results
        assert isinstance(result, Suggestion)
        assert result.class_names == ()
        assert result.score < 0.2

    def test_an_image_never_seen_is_embedded_at_once(self, embedded: World) -> None:
        (result,) = embedded.predict(make_task(20, "dog")).results
        assert isinstance(result, Suggestion)
        assert result.class_names == ("dog",)

    def test_without_an_embedder_there_is_a_reason(self, embedded: World) -> None:
        embedded.embedder.down = True
        (result,) = embedded.predict(make_task(1, "dog")).results
        assert isinstance(result, NoSuggestion)
        assert "not up" in result.reason

    def test_annotators_see_nothing_where_a_quality_is_asked_for(self, embedded: World) -> None:
        embedded.prediction = embedded.new_prediction(Disclosure(min_accuracy=0.01))
        results = embedded.predict(*(make_task(number, pet) for number, pet in pets(8).items())).results
        assert all(isinstance(each, Suggestion) and not each.class_names and each.score > 0.5 for each in results)

    def test_audited_images_are_those_of_every_version(self, embedded: World) -> None:
        def audited() -> set[int]:
            results = embedded.predict(*(make_task(number, pet) for number, pet in pets(8).items())).results
            return {each.task_id for each in results if isinstance(each, Suggestion) and not each.class_names}

        embedded.prediction = embedded.new_prediction(Disclosure(audit_share=0.5))
        before = audited()
        assert 0 < len(before) < 8
        embedded.learn(pets(8))
        assert audited() == before

    def test_the_first_version_takes_over(self, embedded: World) -> None:
        active = embedded.learn(pets(8))
        assert version_of(embedded) == active.name
        (result,) = embedded.predict(make_task(1, "dog")).results
        assert isinstance(result, Suggestion)
        assert result.version == active.name

    def test_there_is_none_for_several_classes_per_image(self, embedded: World) -> None:
        embedded.configure(make_config("cat", "dog", multiple=True))
        assert version_of(embedded) == "p5-v0-untrained"
        assert isinstance(embedded.predict(make_task(1, "dog")).results[0], NoSuggestion)


class TestPush:
    def test_all_tasks_get_theirs_and_the_pointer_stays(self, embedded: World) -> None:
        embedded.label_studio.sampling = Sampling.UNCERTAINTY
        name = version_of(embedded)
        assert embedded.push() == f"9 suggestions of {name} pushed"
        assert stored(embedded) == dict.fromkeys(range(1, 10), name)
        assert embedded.label_studio.model_version == "Tandem", "sampling by these scores would ask for birds only"
        assert embedded.project.pushed_version == name

    def test_nothing_new_is_pushed_twice(self, embedded: World) -> None:
        embedded.push()
        embedded.gateway.calls.clear()
        assert embedded.push().startswith("0 suggestions")
        assert not {"import_predictions", "set_model_version", "delete_predictions"} & set(embedded.gateway.calls)

    def test_the_first_version_replaces_them(self, embedded: World) -> None:
        embedded.push()
        embedded.label(pets(6))
        embedded.fit()
        embedded.push()
        assert stored(embedded) == dict.fromkeys((7, 8, 9), embedded.active.name)
        assert embedded.label_studio.model_version == embedded.active.name

    def test_other_classes_replace_them(self, embedded: World) -> None:
        embedded.push()
        embedded.configure(make_config("cat", "bird"))
        embedded.push()
        assert stored(embedded) == dict.fromkeys(range(1, 10), version_of(embedded))
        assert {each.class_names for each in embedded.label_studio.predictions} == {("cat",), ("bird",), ()}

    def test_what_was_learned_before_all_memory_was_lost_stays(self, embedded: World) -> None:
        lost = Suggestion(task_id=1, class_names=("cat",), score=0.9, version="p5-v7-1a2b3c4d")
        mine = Suggestion(task_id=2, class_names=("cat",), score=0.9, version="my own")
        embedded.label_studio.predictions += [lost, mine]
        embedded.label_studio.model_version = lost.version
        embedded.push()
        assert {lost, mine} < set(embedded.label_studio.predictions)
        assert embedded.label_studio.model_version == lost.version

    def test_none_when_switched_off(self, embedded: World) -> None:
        off = embedded.new_pushing(enabled=False)
        assert "PUSH_PREDICTIONS is off" in off.run(PROJECT, embedded.reports)
        assert embedded.label_studio.predictions == []

    def test_an_embedder_that_is_down_is_waited_for(self, embedded: World) -> None:
        embedded.embedder.down = True
        with pytest.raises(EmbedderUnavailable):
            embedded.push()
        assert stored(embedded) == {}


class TestWhenToPush:
    def test_after_images_were_embedded_and_only_then(self, embedded: World) -> None:
        assert embedded.queued(JobKind.PUSH)
        embedded.finish_jobs()
        embedded.embed()
        assert embedded.queued(JobKind.PUSH) is None

    def test_not_where_no_class_is_known(self, world: World) -> None:
        world.see_tasks(pets(4))
        world.embed()
        assert world.queued(JobKind.PUSH) is None

    def test_after_a_reconciliation_that_finds_them_missing(self, embedded: World) -> None:
        embedded.finish_jobs()
        embedded.sync()
        assert embedded.queued(JobKind.PUSH), "nothing was pushed yet"
        embedded.push()
        embedded.finish_jobs()
        embedded.sync()
        assert embedded.queued(JobKind.PUSH) is None, "all of it is there"
        embedded.configure(make_config("cat", "bird"))
        embedded.finish_jobs()
        embedded.sync()
        assert embedded.queued(JobKind.PUSH), "they are for other classes"


def test_categories_follow_the_embedder(embedded: World) -> None:
    first = version_of(embedded)
    embedded.embedder.categories = ("cat", "dog", "parrot")
    embedded.embed()
    assert is_pretrained_name(PROJECT, version_of(embedded))
    assert version_of(embedded) != first
    overview = embedded.projects.get(PROJECT)
    assert overview.pretrained is not None
    assert dict(zip(overview.pretrained.class_names, overview.pretrained.categories, strict=True)) == {
        "cat": ("cat",),
        "dog": ("dog",),
        "parrot": ("parrot",),
    }
    embedded.learn(pets(8))
    assert embedded.projects.get(PROJECT).pretrained is None
