"""Labels become versions, and versions are promoted or rejected."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.adapters.database import SqlDatabase
from backend.domain import (
    INTERRUPTED,
    JobKind,
    LabelConfig,
    ModelVersion,
    PromotionDecision,
    Suggestion,
    VersionKind,
    VersionStatus,
)
from backend.errors import NotFound, TrainingImpossible
from backend.promotion import TrainedLabels, backbone_key, version_key
from backend.services.promoting import Judgement
from backend.training_set import TrainingSet
from model.checkpoint import load_out_of_fold, load_version_report
from model.folds import NetworkSplit
from model.learned import Learned, OutOfFold
from model.reports import PoolSnapshot, VersionReport
from tests.factories import BASE_DIGEST, image_url, make_config, make_task
from tests.fakes import FakeEmbedder
from tests.world import CATS_DOGS_BIRDS, PROJECT, World, pets

NETWORK = "f" * 64
"""A backbone that was fine-tuned."""


def corrupt(world: World, version: ModelVersion) -> None:
    path = world.artifacts.fetch(version_key(PROJECT, version.name)) / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"evil")


def learn_badly(world: World) -> ModelVersion:
    """Fit a candidate whose out-of-fold predictions are upside down, and have it judged."""
    training_set = world.training.with_features(world.training.training_set(PROJECT), BASE_DIGEST)
    learned = world.training.learn_head(training_set, BASE_DIGEST)
    out_of_fold = replace(learned.out_of_fold, probabilities=1 - learned.out_of_fold.probabilities)
    learned = replace(learned, out_of_fold=out_of_fold)
    candidate = world.training.save(training_set, learned, BASE_DIGEST, VersionKind.HEAD)
    judgement = world.promoting.judge(training_set, candidate, learned.out_of_fold)
    world.promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)
    return world.versions[0]


def finish_finetuning(world: World, training_set: TrainingSet) -> ModelVersion:
    """Do what comes after a network was fine-tuned, which took long, with made-up features of it."""
    digests = tuple(image.image_digest for image in training_set.labelled)
    world.embedder.finetuned.add(NETWORK)
    with world.artifacts.scratch() as folder:
        NetworkSplit.of(digests, {digest: digest for digest in digests}).write(folder)
        world.artifacts.publish(backbone_key(NETWORK), folder)
    cached = [world.images.cached(digest) for digest in digests]
    embedded = world.embedder.embed([image.path for image in cached if image], backbone_digest=NETWORK)
    world.features.append(NETWORK, digests, embedded.features, block_sizes=embedded.block_sizes)
    training_set = world.training.with_features(training_set, NETWORK)
    learned = world.training.learn_head(training_set, NETWORK)
    candidate = world.training.save(training_set, learned, NETWORK, VersionKind.FINETUNE)
    judgement = world.promoting.judge(training_set, candidate, learned.out_of_fold)
    world.promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)
    return next(version for version in world.versions if version.name == candidate.name)


def suggested(world: World, *names: str) -> list[tuple[str, ...]]:
    """What the active version says about pictures it has never seen."""
    answer = world.predict(*(make_task(1000 + number, name) for number, name in enumerate(names)))
    return [result.class_names if isinstance(result, Suggestion) else () for result in answer.results]


class TestFirstVersion:
    def test_it_is_learned_saved_and_promoted(self, world: World) -> None:
        world.see_tasks(pets(20))
        world.label(pets(12))
        world.embed()
        world.finish_jobs()
        outcome = world.fit()
        active = world.active
        assert outcome == f"{active.name} promoted: first version of the project"
        assert active.name.startswith("p5-v1-")
        assert (active.kind, active.status) == (VersionKind.HEAD, VersionStatus.ACTIVE)
        assert (active.n_labels, active.n_validation) == (12, 12)
        assert active.class_names == ("cat", "dog")
        assert active.metrics.accuracy > 0.8
        assert world.queued(JobKind.PUSH) is not None
        assert world.queued(JobKind.FINETUNE) is None
        labels = TrainedLabels.read(world.artifacts.fetch(version_key(PROJECT, active.name)))
        assert {each.task_id: each.class_names for each in labels.labelled} == {
            task_id: (name,) for task_id, name in pets(12).items()
        }

    def test_its_report_tells_the_pool_and_how_features_are_computed(self, world: World) -> None:
        world.see_tasks(pets(20))
        world.label(pets(12))
        world.embed()
        world.fit()
        report = world.projects.version(PROJECT, world.active.name).report
        assert report is not None
        tasks = world.tasks
        assert report.pool == PoolSnapshot.of([tasks[number].image_digest or "" for number in range(13, 21)])
        assert report.embedding == world.embedder.settings(BASE_DIGEST)

    def test_an_embedding_process_out_of_reach_delays_nothing_and_changes_nothing(self, world: World) -> None:
        world.see_tasks(pets(12))
        world.label(pets(12))
        world.embed()
        world.embedder.down = True
        training_set = world.training.with_features(world.training.training_set(PROJECT), BASE_DIGEST)
        world.fit()
        down = world.projects.version(PROJECT, world.active.name).report
        assert down is not None
        assert down.embedding is None
        learned = world.training.learn_head(training_set, BASE_DIGEST)
        settings = FakeEmbedder().settings(BASE_DIGEST)
        again = world.training.save(training_set, learned, BASE_DIGEST, VersionKind.HEAD, embedding=settings)
        # names end with the checkpoint's digest
        assert again.name.split("-")[2] == world.active.name.split("-")[2]

    def test_pictures_never_seen_are_told_apart(self, world: World) -> None:
        world.learn(pets(12))
        assert suggested(world, "cat", "dog", "cat") == [("cat",), ("dog",), ("cat",)]

    def test_several_classes_per_image(self, world: World) -> None:
        world.configure(make_config("cat", "dog", "indoors", multiple=True))
        world.see_tasks(pets(16))
        world.label({task_id: (name, "indoors") if name == "cat" else name for task_id, name in pets(16).items()})
        world.embed()
        world.fit()
        assert suggested(world, "cat", "dog") == [("cat", "indoors"), ("dog",)]

    def test_the_same_labels_are_not_learned_twice(self, world: World) -> None:
        active = world.learn(pets(8))
        assert world.fit() == f"nothing new to learn since {active.name}"
        assert world.versions == [active]

    def test_two_tasks_with_the_same_image_may_contradict_each_other(self, world: World) -> None:
        world.images.contents |= {image_url(name, number): b"cat twin" for name, number in (("cat", 2), ("dog", 3))}
        assert world.learn(pets(8)).n_labels == 8


class TestTooLittle:
    def test_nothing_embedded(self, world: World) -> None:
        world.see_tasks(pets(8))
        world.label(pets(8))
        with pytest.raises(TrainingImpossible, match="no image is embedded yet"):
            world.fit()

    def test_too_few_labels(self, world: World) -> None:
        world.see_tasks(pets(8))
        world.label(pets(3))
        world.embed()
        with pytest.raises(TrainingImpossible, match="waiting for labels: 3 of 4"):
            world.fit()

    def test_one_class_only(self, world: World) -> None:
        world.see_tasks(dict.fromkeys(range(1, 9), "cat"))
        world.label(dict.fromkeys(range(1, 9), "cat"))
        world.embed()
        with pytest.raises(TrainingImpossible, match="second class"):
            world.fit()

    def test_one_class_only_among_the_images_with_features(self, world: World) -> None:
        for task_id in (1, 3, 5, 7):
            world.images.contents[image_url("dog", task_id)] = b"broken file"
        world.see_tasks(pets(8))
        world.label(pets(8))
        world.embed()
        with pytest.raises(TrainingImpossible, match="4 labelled images are embedded"):
            world.fit()

    def test_skipped_tasks_are_no_labels(self, world: World) -> None:
        world.see_tasks(pets(8))
        world.label(pets(3) | {4: (), 5: ()})
        world.embed()
        with pytest.raises(TrainingImpossible, match="3 of 4"):
            world.fit()

    def test_an_unsupported_config(self, world: World) -> None:
        world.learn(pets(8))
        world.configure(LabelConfig(problem="there is no Choices control"))
        with pytest.raises(TrainingImpossible, match="there is no Choices control"):
            world.fit()

    def test_labels_without_features_wait_for_them(self, world: World) -> None:
        world.learn(pets(8))
        world.see_tasks(pets(2, start=9))
        world.label(pets(2, start=9))
        assert "nothing new to learn" in world.fit()
        world.embed()
        world.fit()
        assert world.active.n_labels == 10


class TestMoreLabels:
    def test_a_new_version_replaces_the_active_one(self, world: World) -> None:
        first = world.learn(pets(8))
        second = world.learn(pets(8, start=9))
        assert second.number == 2
        assert (second.status, second.n_labels) == (VersionStatus.ACTIVE, 16)
        assert f"against {first.name} on" in second.reason
        assert world.versions[1].status is VersionStatus.RETIRED

    def test_a_worse_candidate_is_rejected_with_the_reason(self, world: World) -> None:
        first = world.learn(pets(20))
        world.see_tasks(pets(4, start=21))
        world.label(pets(4, start=21))
        world.embed()
        candidate = learn_badly(world)
        assert candidate.status is VersionStatus.REJECTED
        assert f"against {first.name} on 24 images" in candidate.reason
        assert world.active == first

    def test_what_to_label_next_is_chosen_anew_also_where_no_newer_version_comes(self, world: World) -> None:
        world.learn(pets(20))
        world.see_tasks(pets(4, start=21))
        world.label(pets(4, start=21))
        world.embed()
        world.finish_jobs()
        assert learn_badly(world).status is VersionStatus.REJECTED
        assert world.queued(JobKind.QUERY) is not None
        assert world.queued(JobKind.PUSH) is None

    @pytest.mark.parametrize("was_dropped", [False, True])
    def test_a_candidate_that_nobody_came_to_judge_is_fitted_again(self, world: World, was_dropped: bool) -> None:
        world.learn(pets(20))
        world.see_tasks(pets(4, start=21))
        world.label(pets(4, start=21))
        world.embed()
        training_set = world.training.with_features(world.training.training_set(PROJECT), BASE_DIGEST)
        learned = world.training.learn_head(training_set, BASE_DIGEST)
        unjudged = world.training.save(training_set, learned, BASE_DIGEST, VersionKind.HEAD)
        if was_dropped:
            with world.database.transaction() as stores:
                stores.versions.reject(PROJECT, unjudged.name, INTERRUPTED)
        assert "promoted" in world.fit()
        assert world.active.n_labels == 24
        assert world.active.number == unjudged.number + 1

    def test_no_folder_is_ever_without_its_row(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        world.see_tasks(pets(12))
        world.label(pets(12))
        world.embed()
        monkeypatch.setattr(world.artifacts, "publish", fail)
        with pytest.raises(OSError, match="no space left"):
            world.fit()
        assert [version.status for version in world.versions] == [VersionStatus.CANDIDATE]
        monkeypatch.undo()
        assert "promoted" in world.fit()

    def test_a_rejected_candidate_is_not_fitted_again_and_again(self, world: World) -> None:
        world.learn(pets(20))
        world.see_tasks(pets(4, start=21))
        world.label(pets(4, start=21))
        world.embed()
        rejected = learn_badly(world)
        assert world.fit() == f"nothing new to learn since {rejected.name}"
        assert len(world.versions) == 2

    def test_fine_tuning_follows_when_there_are_enough_labels(self, world: World) -> None:
        world.learn(pets(49))
        assert world.queued(JobKind.FINETUNE) is None
        world.learn({50: "cat"})
        assert world.queued(JobKind.FINETUNE) is not None

    def test_on_a_fine_tuned_backbone_only_images_it_never_saw_judge(self, world: World) -> None:
        world.learn(pets(40))
        digests = [task.image_digest or "" for task in world.tasks.values()]
        # as if the last ten had come since
        held_out = set(digests[:12])
        split = NetworkSplit(seen=frozenset(digests[12:30]), held_out={digest: digest for digest in held_out})
        with world.artifacts.scratch() as folder:
            split.write(folder)
            world.artifacts.publish(backbone_key("f" * 64), folder)
        world.embedder.finetuned.add("f" * 64)
        with world.database.transaction() as stores:
            stores.projects.save(replace(world.project, backbone_digest="f" * 64))
        world.embed()
        world.fit()
        newest = world.versions[0]
        assert newest.backbone_digest == "f" * 64
        out_of_fold: OutOfFold = load_out_of_fold(world.artifacts.fetch(version_key(PROJECT, newest.name)))
        assert set(out_of_fold.digests) == held_out
        assert newest.n_validation == len(held_out) < newest.n_labels == 40


class TestUnlearning:
    def test_a_deleted_label_is_unlearned(self, world: World) -> None:
        first = world.learn(pets(12))
        world.unlabel(3)
        world.fit()
        assert world.active.number == 2
        assert world.active.n_labels == 11
        assert world.active.reason == f"{first.name} learned from 1 labels that were since withdrawn or changed"

    def test_a_label_whose_image_awaits_features_is_not_withdrawn(self, world: World) -> None:
        world.learn(pets(12))
        digests = sorted(task.image_digest or "" for task in world.tasks.values())[:8]
        rows, _ = world.features.read(BASE_DIGEST, digests)
        world.features.append("e" * 64, digests, rows, block_sizes=world.features.block_sizes(BASE_DIGEST))
        with world.database.transaction() as stores:
            stores.projects.save(replace(world.project, backbone_digest="e" * 64))
        world.fit()
        assert world.versions[0].n_labels == 8
        assert "withdrawn" not in world.versions[0].reason

    def test_a_changed_label_is_unlearned(self, world: World) -> None:
        world.learn(pets(12))
        world.clock.forward(5)
        world.label({3: "cat"})
        world.fit()
        assert "learned from 1 labels" in world.active.reason

    def test_a_label_that_came_back_is_learned_again(self, world: World) -> None:
        world.learn(pets(12))
        world.unlabel(3)
        world.fit()
        world.clock.forward(5)
        world.label({3: "dog"})
        world.fit()
        assert (world.active.number, world.active.n_labels) == (3, 12)


class TestConfigChanges:
    def test_a_class_added_keeps_what_was_learned_for_the_others(self, world: World) -> None:
        first = world.learn(pets(12))
        world.configure(CATS_DOGS_BIRDS)
        world.fit()
        assert world.active.class_names == ("cat", "dog", "bird")
        assert world.active.reason == f"{first.name} does not know bird"
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]
        world.learn(dict.fromkeys(range(13, 19), "bird"))
        assert suggested(world, "cat", "dog", "bird") == [("cat",), ("dog",), ("bird",)]

    def test_a_class_removed_is_never_suggested_again(self, world: World) -> None:
        world.configure(CATS_DOGS_BIRDS)
        birds = dict.fromkeys(range(13, 19), "bird")
        world.learn(pets(12) | birds)
        world.configure(make_config("cat", "dog"))
        assert all(names != ("bird",) for names in suggested(world, "bird", "bird", "bird"))
        world.fit()
        assert world.active.class_names == ("cat", "dog")
        assert world.active.n_labels == 12
        assert "learned from 6 labels" in world.active.reason
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]

    def test_a_class_that_came_back_brings_its_labels_back(self, world: World) -> None:
        world.configure(CATS_DOGS_BIRDS)
        world.learn(pets(12) | dict.fromkeys(range(13, 19), "bird"))
        world.configure(make_config("cat", "dog"))
        world.fit()
        world.configure(CATS_DOGS_BIRDS)
        world.fit()
        assert (world.active.number, world.active.n_labels) == (3, 18)

    def test_a_class_renamed_is_learned_as_the_new_one(self, world: World) -> None:
        world.learn(pets(12))
        world.configure(make_config("cat", "hound"))
        with pytest.raises(TrainingImpossible, match="second class"):
            world.fit()
        world.learn(dict.fromkeys(range(13, 19), "hound"))
        assert world.active.class_names == ("cat", "hound")
        assert suggested(world, "cat", "hound") == [("cat",), ("hound",)]

    def test_from_one_class_per_image_to_several_and_back(self, world: World) -> None:
        world.learn(pets(12))
        world.configure(make_config("cat", "dog", multiple=True))
        world.fit()
        assert world.versions[0].number == 2
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]
        world.configure(make_config("cat", "dog"))
        world.fit()
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]

    def test_classes_in_another_order(self, world: World) -> None:
        world.learn(pets(12))
        world.configure(make_config("dog", "cat"))
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]
        world.fit()
        assert suggested(world, "cat", "dog") == [("cat",), ("dog",)]


class TestBrokenVersions:
    def test_a_corrupt_active_version_is_replaced(self, world: World) -> None:
        first = world.learn(pets(12))
        corrupt(world, first)
        world.fit()
        assert world.active.number == 2

    def test_an_active_version_that_is_gone_is_replaced(self, world: World) -> None:
        first = world.learn(pets(12))
        world.artifacts.delete(version_key(PROJECT, first.name))
        world.fit()
        assert world.active.number == 2


class TestRollback:
    def test_an_earlier_version_is_active_again(self, world: World) -> None:
        first = world.learn(pets(8))
        second = world.learn(pets(8, start=9))
        world.finish_jobs()
        assert world.promoting.rollback(PROJECT, first.name).status is VersionStatus.ACTIVE
        assert world.active.name == first.name
        assert world.active.reason == "rolled back by hand"
        assert [version.status for version in world.versions if version.name == second.name] == [VersionStatus.RETIRED]
        assert world.queued(JobKind.PUSH) is not None

    def test_it_lasts_until_there_is_something_new_to_learn(self, world: World) -> None:
        first = world.learn(pets(8))
        world.learn(pets(8, start=9))
        world.promoting.rollback(PROJECT, first.name)
        world.fit()
        assert world.active.name == first.name
        assert world.learn(pets(4, start=17)).number == 3

    def test_it_takes_the_project_back_to_the_backbone(self, world: World) -> None:
        first = world.learn(pets(8))
        with world.database.transaction() as stores:
            stores.projects.save(replace(world.project, backbone_digest="f" * 64))
        world.finish_jobs()
        world.promoting.rollback(PROJECT, first.name)
        assert world.project.backbone_digest == BASE_DIGEST
        assert world.queued(JobKind.EMBED) is not None

    def test_what_cannot_be_rolled_back_to(self, world: World) -> None:
        first = world.learn(pets(8))
        second = world.learn(pets(8, start=9))
        with pytest.raises(NotFound):
            world.promoting.rollback(PROJECT, "p5-v9-00000000")
        world.artifacts.delete(version_key(PROJECT, first.name))
        with pytest.raises(NotFound):
            world.promoting.rollback(PROJECT, first.name)
        assert world.active == second

    def test_it_lasts_where_it_leads_to_another_backbone(self, world: World) -> None:
        first = world.learn(pets(8))
        world.see_tasks(pets(12, start=9))
        world.label(pets(12, start=9))
        world.embed()
        tuned = finish_finetuning(world, world.training.training_set(PROJECT))
        with world.database.transaction() as stores:
            world.promoting.activate(stores, tuned, "better")
        world.embed()
        world.promoting.rollback(PROJECT, first.name)
        world.embed()
        assert world.fit() == f"nothing new to learn since {tuned.name}"
        assert world.active.name == first.name
        assert world.learn(pets(4, start=21)).number == 3

    @pytest.mark.parametrize("was_active", [False, True])
    def test_it_lasts_where_a_training_was_under_way(
        self, world: World, monkeypatch: pytest.MonkeyPatch, was_active: bool
    ) -> None:
        first, second = world.learn(pets(8)), world.learn(pets(8, start=9))
        chosen = second if was_active else first
        world.see_tasks(pets(4, start=17))
        world.label(pets(4, start=17))
        world.embed()
        learn_head = world.training.learn_head

        def slowly(training_set: TrainingSet, digest: str) -> Learned:
            learned = learn_head(training_set, digest)
            world.promoting.rollback(PROJECT, chosen.name)
            return learned

        monkeypatch.setattr(world.training, "learn_head", slowly)
        assert f"somebody went back to {chosen.name} while it was trained" in world.fit()
        assert world.active.name == chosen.name
        monkeypatch.undo()
        assert world.fit().startswith("nothing new to learn")

    def test_nobody_waits_while_a_storage_is_asked_for_the_version(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = world.learn(pets(8))
        world.learn(pets(8, start=9))
        keys = world.artifacts.keys

        def asked(prefix: str) -> list[str]:
            world.see_tasks(pets(1, start=30))  # another transaction
            return keys(prefix)

        monkeypatch.setattr(world.artifacts, "keys", asked)
        world.promoting.rollback(PROJECT, first.name)
        assert world.active.name == first.name
        assert 30 in world.tasks


class TestNewVersionsMeanwhile:
    """A fine-tuning takes hours, in which heads come and go: it is measured against what is there in the end."""

    def test_it_is_compared_with_the_version_that_is_active_by_then(self, world: World) -> None:
        world.learn(pets(30))
        training_set = world.training.training_set(PROJECT)
        second = world.learn(pets(60, start=31))
        assert f"against {second.name} on" in finish_finetuning(world, training_set).reason

    def test_it_does_not_replace_a_version_that_knows_more_classes(self, world: World) -> None:
        world.learn(pets(20))
        training_set = world.training.training_set(PROJECT)
        world.configure(make_config("cat", "dog", "bird"))
        second = world.learn({100 + number: ("cat", "dog", "bird")[number % 3] for number in range(90)})
        assert finish_finetuning(world, training_set).reason == f"{second.name} knows bird, which it does not"
        assert world.active == second

    def test_it_is_judged_again_where_a_version_comes_after_it_was_judged(self, world: World) -> None:
        world.learn(pets(30))
        training_set = world.training.with_features(world.training.training_set(PROJECT), BASE_DIGEST)
        learned = world.training.learn_head(training_set, BASE_DIGEST)
        candidate = world.training.save(training_set, learned, BASE_DIGEST, VersionKind.FINETUNE)
        judgement = world.promoting.judge(training_set, candidate, learned.out_of_fold)
        newer = world.learn(pets(60, start=31))
        assert newer.name in world.promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)


@pytest.mark.parametrize("promote", [False, True])
def test_no_fine_tuning_follows_a_fine_tuning(world: World, promote: bool) -> None:
    active = world.learn(pets(50))
    world.finish_jobs()
    training_set = world.training.with_features(world.training.training_set(PROJECT), BASE_DIGEST)
    learned = world.training.learn_head(training_set, BASE_DIGEST)
    candidate = world.training.save(training_set, learned, BASE_DIGEST, VersionKind.FINETUNE)
    decision = PromotionDecision(promote=promote, reason="tested")
    judgement = Judgement(decision=decision, active=active)
    world.promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)
    assert world.queued(JobKind.FINETUNE) is None


def test_labels_whose_images_cannot_be_read_do_not_bring_another_finetuning(world: World) -> None:
    for task in world.see_tasks(pets(100)):
        if task.id > 60:
            world.images.contents[task.image_url or ""] = b"broken %d" % task.id
    world.label(pets(100))
    world.embed()
    training_set = world.training.training_set(PROJECT)
    assert training_set.counts.n_embedded_labels == 60
    finish_finetuning(world, world.training.with_features(training_set, BASE_DIGEST))
    world.finish_jobs()
    world.learn({200: "cat"})
    assert world.queued(JobKind.FINETUNE) is None


def test_the_same_labels_give_the_same_version_again(world: World) -> None:
    """Otherwise a comparison of two candidates would compare luck."""
    first = world.learn(pets(12))
    world.artifacts.delete(version_key(PROJECT, first.name))
    world.fit()
    assert world.active.name.split("-")[2] == first.name.split("-")[2]
    np.testing.assert_allclose(world.active.metrics.log_loss, first.metrics.log_loss)


class TestReproducibility:
    """The same labels of the same images give the same checkpoint, to the last bit."""

    def learn(self, folder: Path, empty_database: Path, labels: Mapping[int, str]) -> tuple[str, VersionReport]:
        folder.mkdir()
        database = folder / "tandem.db"
        shutil.copy(empty_database, database)
        world = World(folder, SqlDatabase(f"sqlite:///{database}"))
        world.see_tasks(pets(30))
        world.label(labels)
        world.embed()
        world.fit()
        name = world.active.name
        world.database.close()
        return name, load_version_report(world.artifacts.fetch(version_key(PROJECT, name)))

    def test_equal_labels_give_equal_checkpoints_and_others_others(self, tmp_path: Path, empty_database: Path) -> None:
        labels = pets(16)
        first, report = self.learn(tmp_path / "first", empty_database, labels)
        again, same = self.learn(tmp_path / "again", empty_database, dict(reversed(labels.items())))
        assert (again, same.snapshot) == (first, report.snapshot)
        other, changed = self.learn(tmp_path / "other", empty_database, labels | {1: "cat", 2: "dog"})
        assert other != first
        assert changed.snapshot != report.snapshot
        assert len(report.snapshot) == 64
