"""Labels to look at again, and what more labels would bring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.agreement import Agreement
from backend.domain import AnnotationsSeen, LabelConfig, ModelVersion, VersionKind
from backend.errors import CheckpointCorrupt, Conflict, NotFound
from backend.promotion import version_key
from backend.services.review import (
    MIN_RANDOM_IMAGES,
    N_MORE_LABELS,
    CurvePoint,
    Review,
    forecast_of,
    learning_curve,
    standard_error,
)
from model.forecast import LEVEL
from tests.factories import make_annotation, make_config, make_metrics, make_version
from tests.world import CATS_DOGS_BIRDS, PROJECT, World, pets

WRONG = 7


@pytest.fixture
def review(world: World) -> Review:
    return Review(world.database, world.artifacts)


def learn_with_a_wrong_label(world: World) -> None:
    """Twenty-four pictures of cats and dogs, one of the dogs labelled as a cat."""
    world.see_tasks(pets(24))
    world.label(pets(24) | {WRONG: "cat"})
    world.embed()
    world.fit()


def suspected(review: Review) -> list[int]:
    return [suspect.task_id for suspect in review.suspects(PROJECT).suspects]


class TestSuspects:
    def test_a_wrong_label_comes_first(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        found = review.suspects(PROJECT)
        first = found.suspects[0]
        assert (first.task_id, first.given, first.suggested) == (WRONG, ("cat",), ("dog",))
        assert first.image_digest == world.tasks[WRONG].image_digest
        assert 0.5 < first.confidence <= 1
        assert found.n_checked == 24
        assert found.agreement == Agreement(n_tasks=0, share=None)

    def test_right_labels_are_not_suspect(self, world: World, review: Review) -> None:
        world.learn(pets(24))
        assert suspected(review) == []

    def test_a_label_is_judged_as_it_is_now(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        world.clock.forward(1)
        world.label({WRONG: "dog", 18: "dog"})
        assert suspected(review) == [18]

    def test_ground_truth_is_no_suspect(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        looked_at = make_annotation(100 + WRONG, WRONG, "cat", updated_at=world.clock.forward(1), ground_truth=True)
        world.ingestion.handle(AnnotationsSeen(project=world.snapshot, tasks=(), annotations=(looked_at,)))
        assert suspected(review) == []

    def test_a_deleted_label_disappears(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        world.unlabel(WRONG)
        assert suspected(review) == []
        assert review.suspects(PROJECT).n_checked == 23

    def test_labels_newer_than_the_version_are_not_checked(self, world: World, review: Review) -> None:
        world.learn(pets(12))
        world.see_tasks({50: "dog"})
        world.label({50: "cat"})
        world.embed()
        assert review.suspects(PROJECT).n_checked == 12

    def test_several_tasks_may_show_one_image(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        twin = replace(world.tasks[WRONG], id=50, image_digest=None)
        world.images.contents["/twin.png"] = b"dog 7"
        with world.database.transaction() as stores:
            stores.tasks.upsert(PROJECT, [replace(twin, image_url="/twin.png")])
        world.label({50: "dog"})
        world.embed()
        found = review.suspects(PROJECT)
        assert found.n_checked == 25
        assert [suspect.task_id for suspect in found.suspects] == [WRONG]

    def test_several_classes_per_image(self, world: World, review: Review) -> None:
        world.configure(make_config("cat", "dog", "indoors", multiple=True))
        names = pets(24)
        labels = {task_id: (name, "indoors") if name == "cat" else (name,) for task_id, name in names.items()}
        world.see_tasks(names)
        world.label(labels | {8: ("cat",)})
        world.embed()
        world.fit()
        first = review.suspects(PROJECT).suspects[0]
        assert (first.task_id, first.given, first.suggested) == (8, ("cat",), ("cat", "indoors"))
        assert first.confidence > 0.5

    def test_classes_that_left_the_config_do_not_count(self, world: World, review: Review) -> None:
        world.configure(CATS_DOGS_BIRDS)
        names = pets(24) | {task_id: "bird" for task_id in range(30, 36)}
        world.see_tasks(names)
        world.label(names | {WRONG: "cat"})
        world.embed()
        world.fit()
        world.configure(make_config("dog", "cat"))
        found = review.suspects(PROJECT)
        assert found.n_checked == 24
        assert (found.suspects[0].task_id, found.suspects[0].suggested) == (WRONG, ("dog",))

    def test_classes_that_the_version_does_not_know_are_not_checked(self, world: World, review: Review) -> None:
        learn_with_a_wrong_label(world)
        world.configure(CATS_DOGS_BIRDS)
        world.clock.forward(1)
        world.label({1: "bird", 2: "bird"})
        assert review.suspects(PROJECT).n_checked == 22
        assert suspected(review) == [WRONG]
        world.configure(make_config("horse", "cow"))
        with pytest.raises(Conflict, match="none of the classes"):
            review.suspects(PROJECT)

    def test_agreement_of_annotators(self, world: World, review: Review) -> None:
        world.learn(pets(12))
        second_opinions = tuple(
            make_annotation(200 + task_id, task_id, "cat", updated_at=world.clock.now(), annotator_id=2)
            for task_id in (1, 2, 3, 4)
        )
        world.ingestion.handle(AnnotationsSeen(project=world.snapshot, tasks=(), annotations=second_opinions))
        assert review.suspects(PROJECT).agreement == Agreement(n_tasks=4, share=0.5)

    def test_without_a_version_it_says_what_to_do(self, world: World, review: Review) -> None:
        with pytest.raises(NotFound, match="no project 5"):
            review.suspects(PROJECT)
        world.see_tasks(pets(4))
        with pytest.raises(Conflict, match="no version yet: label some more images"):
            review.suspects(PROJECT)
        world.configure(LabelConfig(problem="there is no Choices control"))
        with pytest.raises(Conflict, match="there is no Choices control"):
            review.suspects(PROJECT)

    def test_a_version_that_cannot_be_read(self, world: World, review: Review) -> None:
        active = world.learn(pets(12))
        world.artifacts.delete(version_key(PROJECT, active.name))
        with pytest.raises(CheckpointCorrupt, match=f"{active.name} cannot be used"):
            review.suspects(PROJECT)


def version(number: int, n_labels: int, **changes: object) -> ModelVersion:
    return replace(make_version(number, n_labels=n_labels), **changes)  # type: ignore[arg-type]


def point_of(version: ModelVersion) -> CurvePoint:
    return CurvePoint(n_labels=version.n_labels, accuracy=version.metrics.accuracy, n_images=version.n_validation)


def draw(world: World, n_tasks: int) -> None:
    with world.database.transaction() as stores:
        stores.tasks.record_drawn(PROJECT, range(1, n_tasks + 1))


def curve_of(*versions: ModelVersion) -> list[int]:
    """Numbers of the versions on the learning curve of these, given oldest first."""
    return [each.number for each in learning_curve(versions[::-1])]


class TestLearningCurve:
    def test_points_are_a_doubling_apart(self) -> None:
        assert curve_of(*(version(n_labels, n_labels) for n_labels in range(5, 101))) == [100, 50, 25, 12, 6]

    def test_two_points_may_be_nearer(self) -> None:
        assert curve_of(version(1, 500), version(2, 501), version(3, 502)) == [3, 1]

    def test_the_newest_of_one_number_of_labels_counts(self) -> None:
        assert curve_of(version(1, 10), version(2, 10), version(3, 20)) == [3, 2]

    def test_only_what_is_like_the_newest_head_counts(self) -> None:
        other = version(1, 10)
        comparable = version(5, 20)
        newest = version(6, 40, class_names=comparable.class_names[::-1])
        assert curve_of(
            replace(other, backbone_digest="other"),
            replace(other, number=2, class_names=("horse", "cow")),
            replace(other, number=3, n_validation=0),
            version(4, 400),
            comparable,
            newest,
            version(7, 80, kind=VersionKind.FINETUNE),
        ) == [6, 5]

    def test_versions_judged_on_the_same_images_feign_no_certainty(self) -> None:
        random = np.random.default_rng(0)
        n_labels, n_curves, held = 200, 60, 0
        for _ in range(n_curves):
            lasting, last, exponent = random.uniform(0, 0.15), random.uniform(0.05, 0.25), random.uniform(0.3, 0.9)
            error_at = {n: lasting + last * (n / n_labels) ** -exponent for n in range(12, n_labels + 51, 2)}
            hardness = random.random(n_labels)
            versions = [
                version(n, n, metrics=replace(make_metrics(), accuracy=float((hardness[:n] >= error_at[n]).mean())))
                for n in range(n_labels, 11, -2)
            ]
            expected = forecast_of([point_of(each) for each in learning_curve(versions)])
            held += expected.low <= error_at[n_labels] - error_at[n_labels + 50] <= expected.high
        assert held / n_curves >= LEVEL - 0.1

    def test_no_head_at_all(self) -> None:
        assert curve_of() == curve_of(version(1, 10, kind=VersionKind.FINETUNE)) == []


class TestForecast:
    def test_of_two_versions(self, world: World, review: Review) -> None:
        world.learn(pets(8))
        world.learn(pets(24))
        forecast = review.forecast(PROJECT)
        expected = forecast.expected
        assert (expected.n_labels, expected.n_more) == (24, N_MORE_LABELS)
        assert 0 <= expected.low <= expected.gain <= expected.high <= 1
        assert "50 more labels" in forecast.sentence
        assert "Measured on 24 labelled images" in forecast.sentence

    def test_what_still_grows_will_grow(self, world: World, review: Review) -> None:
        world.see_tasks(pets(1))
        for number, (n_labels, accuracy) in enumerate(((25, 0.55), (50, 0.65), (100, 0.73)), start=1):
            metrics = replace(make_metrics(), accuracy=accuracy)
            with world.database.transaction() as stores:
                stores.versions.add(version(number, n_labels, metrics=metrics))
        expected = review.forecast(PROJECT).expected
        assert expected.accuracy == pytest.approx(0.73, abs=0.05)
        assert 0.01 < expected.gain < 0.1
        assert expected.low < expected.gain < expected.high

    def test_images_that_chance_chose_judge_as_soon_as_there_are_enough(self, world: World, review: Review) -> None:
        wrong = {task_id: "bird" for task_id in range(1, 9)}
        world.configure(CATS_DOGS_BIRDS)
        world.see_tasks(pets(80))
        world.embed()
        for n_labels in (40, 80):
            world.label(pets(n_labels) | wrong)
            world.fit()
        draw(world, MIN_RANDOM_IMAGES - 1)
        on_all = review.forecast(PROJECT)
        draw(world, MIN_RANDOM_IMAGES)
        on_random = review.forecast(PROJECT)
        assert (on_all.n_images, on_all.at_random) == (80, False)
        assert (on_random.n_images, on_random.at_random) == (MIN_RANDOM_IMAGES, True)
        # the labels that cannot be learned are a tenth of all, and more of those that chance chose
        assert on_random.expected.accuracy < on_all.expected.accuracy - 0.05
        assert on_random.expected.high - on_random.expected.low > on_all.expected.high - on_all.expected.low
        assert f"Measured on {MIN_RANDOM_IMAGES} images drawn at random" in on_random.sentence

    def test_too_few_versions(self, world: World, review: Review) -> None:
        with pytest.raises(NotFound, match="no project 5"):
            review.forecast(PROJECT)
        world.see_tasks(pets(1))
        with pytest.raises(Conflict, match="no version yet: label some more images"):
            review.forecast(PROJECT)
        world.learn(pets(8))
        with pytest.raises(Conflict, match="too few versions for a forecast"):
            review.forecast(PROJECT)


def test_standard_errors() -> None:
    assert standard_error(0.8, 10_000) == pytest.approx(0.004, rel=0.01)
    assert standard_error(1, 10) == pytest.approx((12 / 14 * 2 / 14 / 14) ** 0.5)
    assert standard_error(1, 10) > standard_error(1, 100) > 0
