"""Both versions are compared on equal terms: the same images, none of which either was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.features import FeatureFiles
from backend.domain import LabelledImage
from backend.errors import NotFound
from backend.promotion import ActiveVersion, TrainedLabels, backbone_key, normalised, targets_of, version_key
from model.checkpoint import CorruptCheckpoint, load_out_of_fold
from model.learned import OutOfFold
from tests.factories import BASE_DIGEST, make_schema
from tests.world import PROJECT, World, pets

SCHEMA = make_schema("cat", "dog", "bird")


def image(task_id: int, *class_names: str) -> LabelledImage:
    return LabelledImage(task_id=task_id, image_digest=f"{task_id:064x}", class_names=class_names)


class TestTargets:
    def test_one_class_per_image_is_an_index(self) -> None:
        targets = targets_of([image(1, "bird"), image(2, "cat")], SCHEMA)
        assert targets.tolist() == [2, 0]
        assert targets_of([], SCHEMA).shape == (0,)

    def test_several_classes_are_a_row_of_booleans(self) -> None:
        schema = make_schema("cat", "dog", "bird", multiple=True)
        targets = targets_of([image(1, "bird", "cat"), image(2, "dog")], schema)
        assert targets.tolist() == [[True, False, True], [False, True, False]]
        assert targets.dtype == np.bool_

    def test_probabilities_of_the_classes_that_remain_sum_to_one(self) -> None:
        rows = np.array([[0.2, 0.6], [0.0, 0.0]], dtype=np.float32)
        np.testing.assert_allclose(normalised(rows, SCHEMA), [[0.25, 0.75], [0, 0]])
        np.testing.assert_array_equal(normalised(rows, make_schema(multiple=True)), rows)


class TestTrainedLabels:
    def test_they_come_back_as_they_were_written(self, tmp_path: Path) -> None:
        labels = TrainedLabels(labelled=(image(1, "Кошка"), image(2, "dog", "cat")))
        labels.write(tmp_path)
        assert TrainedLabels.read(tmp_path) == labels

    def test_withdrawn_and_changed_labels_count_and_new_ones_do_not(self) -> None:
        labels = TrainedLabels(labelled=(image(1, "cat"), image(2, "dog"), image(3, "cat")))
        assert labels.count_withdrawn([image(1, "cat"), image(2, "dog"), image(3, "cat"), image(4, "dog")]) == 0
        assert labels.count_withdrawn([image(1, "cat"), image(2, "cat")]) == 2


class TestActiveVersion:
    @pytest.fixture
    def active(self, world: World) -> ActiveVersion:
        version = world.learn(pets(12))
        world.see_tasks(pets(4, start=13))
        world.embed()
        return ActiveVersion(version, world.artifacts, world.features)

    def labelled(self, world: World, n: int) -> list[LabelledImage]:
        return [
            LabelledImage(task_id=task.id, image_digest=task.image_digest or "", class_names=(pets(16)[task.id],))
            for task in list(world.tasks.values())[:n]
        ]

    def candidate(self, labelled: list[LabelledImage], right: float) -> OutOfFold:
        targets = targets_of(labelled, make_schema())
        probabilities = np.full((len(labelled), 2), 1 - right, dtype=np.float32)
        probabilities[np.arange(len(labelled)), targets] = right
        return OutOfFold(digests=tuple(each.image_digest for each in labelled), probabilities=probabilities)

    def test_its_own_images_count_by_out_of_fold_predictions(self, world: World, active: ActiveVersion) -> None:
        digests = [each.image_digest for each in self.labelled(world, 12)]
        learned = active.probabilities(digests)
        kept = load_out_of_fold(world.artifacts.fetch(version_key(PROJECT, active.version.name)))
        assert set(learned) == set(digests) == set(kept.digests)
        np.testing.assert_array_equal([learned[digest] for digest in kept.digests], kept.probabilities)

    def test_images_it_never_saw_count_by_fresh_predictions(self, world: World, active: ActiveVersion) -> None:
        fresh = [each.image_digest for each in self.labelled(world, 16)[12:]]
        rows, _ = world.features.read(BASE_DIGEST, fresh)
        expected = world.prediction.predictor(active.version).predict_proba(rows)
        learned = active.probabilities(fresh)
        np.testing.assert_allclose([learned[digest] for digest in fresh], expected)

    def test_the_sign_says_who_is_better(self, world: World, active: ActiveVersion) -> None:
        labelled = self.labelled(world, 16)
        worse = active.compare(self.candidate(labelled, 0.3), labelled, make_schema())
        assert worse.n_images == 16
        assert worse.log_loss_difference > worse.standard_error >= 0
        assert worse.accuracy_difference < 0
        other = {("cat",): ("dog",), ("dog",): ("cat",)}
        relabelled = [replace(each, class_names=other[each.class_names]) for each in labelled]
        better = active.compare(self.candidate(relabelled, 0.9), relabelled, make_schema())
        assert better.log_loss_difference < 0 < better.accuracy_difference

    def test_images_without_features_cannot_judge(self, world: World, active: ActiveVersion) -> None:
        labelled = [*self.labelled(world, 12), image(99, "cat")]
        comparison = active.compare(self.candidate(labelled, 0.9), labelled, make_schema())
        assert comparison.n_images == 12

    def test_no_image_in_common_is_no_comparison(self, active: ActiveVersion) -> None:
        labelled = [image(98, "cat"), image(99, "dog")]
        assert active.compare(self.candidate(labelled, 0.9), labelled, make_schema()).n_images == 0

    def test_classes_in_another_order_are_compared_by_name(self, world: World, active: ActiveVersion) -> None:
        labelled = self.labelled(world, 16)
        candidate = self.candidate(labelled, 0.9)
        turned = OutOfFold(digests=candidate.digests, probabilities=candidate.probabilities[:, ::-1])
        one = active.compare(candidate, labelled, make_schema("cat", "dog"))
        other = active.compare(turned, labelled, make_schema("dog", "cat"))
        assert one.log_loss_difference == pytest.approx(other.log_loss_difference)

    def test_a_version_that_is_gone_or_altered_is_no_judge(self, world: World, active: ActiveVersion) -> None:
        key = version_key(PROJECT, active.version.name)
        (world.artifacts.fetch(key) / "labels.json").write_text("[]")
        with pytest.raises(CorruptCheckpoint):
            ActiveVersion(active.version, world.artifacts, world.features)
        world.artifacts.delete(key)
        with pytest.raises(NotFound):
            ActiveVersion(active.version, world.artifacts, world.features)


@pytest.mark.parametrize("damage", ["[not json", "", '{"no": "list"}'])
def test_labels_that_cannot_be_parsed_are_a_corrupt_checkpoint(world: World, damage: str) -> None:
    version = world.learn(pets(8))
    folder = world.artifacts.fetch(version_key(PROJECT, version.name))
    (folder / "labels.json").write_text(damage)
    artifacts, features = LocalArtifacts(world.folder / "artifacts"), FeatureFiles(world.folder / "features")
    with pytest.raises(CorruptCheckpoint):
        ActiveVersion(version, artifacts, features)


def test_keys() -> None:
    assert version_key(5, "p5-v1-0badcafe") == "versions/p5/p5-v1-0badcafe"
    assert backbone_key("ab") == "backbones/ab"
