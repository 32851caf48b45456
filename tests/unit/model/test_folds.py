from pathlib import Path

import numpy as np
import pytest

from model import folds
from model.folds import JUDGING_FOLD, SPLIT_FILE, NetworkSplit, first_digests, fold_of, folds_of, groups_of, held_out
from tests.unit.model.test_duplicates import BLOCK_SIZES, doubles_of, make_images


def digests_of(n_images: int) -> list[str]:
    return [f"digest {index:03}" for index in range(n_images)]


def test_folds_never_change() -> None:
    assert [fold_of(digest) for digest in ("a", "b", "c", "d", "e")] == [0, 1, 0, 4, 2]
    counts = np.bincount([fold_of(str(index)) for index in range(5000)], minlength=5)
    assert counts.min() > 900


def test_doubles_share_the_fold_of_the_first_digest() -> None:
    images = make_images(40)
    features = np.concatenate([images, doubles_of(images)])
    groups = groups_of(digests_of(80), features, np.arange(80) % 2, BLOCK_SIZES)
    assert list(groups) == digests_of(80)
    assert list(groups.values()) == digests_of(40) * 2
    folds = folds_of(digests_of(80), groups)
    np.testing.assert_array_equal(folds, [fold_of(digest) for digest in digests_of(40)] * 2)


def test_images_without_a_double_keep_their_own_fold() -> None:
    groups = groups_of(digests_of(60), make_images(60), np.arange(60) % 3, BLOCK_SIZES)
    assert groups == {digest: digest for digest in digests_of(60)}


def test_images_without_a_label_have_doubles_too() -> None:
    images = make_images(60)
    features = np.concatenate([images, doubles_of(images[:40])])
    groups = groups_of(digests_of(100), features, np.arange(30) % 2, BLOCK_SIZES)
    assert list(groups.values()) == digests_of(60) + digests_of(40)


def test_a_double_that_arrives_moves_its_group_only_if_its_digest_comes_first() -> None:
    images = np.eye(6, dtype=np.float32)
    coordinates = np.concatenate([images, images[:1] + 0.01])
    targets = np.zeros(7, int)
    assert first_digests([*"bcdefg", "z"], coordinates, targets) == [*"bcdefg", "b"]
    assert first_digests([*"bcdefg", "a"], coordinates, targets) == ["a", *"cdefg", "a"]


ALIKE = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], np.float32)


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([0, 0, 0, 1], id="all of a class"),
        pytest.param([0, 0, 0, 0], id="most of a class"),
        pytest.param([[True, False]] * 4, id="most that have a class"),
        pytest.param([[False, False]] * 4, id="most that have none"),
    ],
)
def test_images_that_are_most_of_their_class_are_not_held_out_together(
    targets: list[int] | list[list[bool]],
) -> None:
    digests = ["d", "c", "b", "a"]
    assert first_digests(digests, ALIKE, np.array(targets)) == digests


def test_how_many_of_a_class_look_the_same_is_told_by_its_labels() -> None:
    alike = np.concatenate([ALIKE[:3], ALIKE[:3], ALIKE[3:]])
    digests = [*"gfedcba"]
    assert first_digests(digests, alike, np.zeros(3, int)) == digests
    others = np.eye(7, dtype=np.float32)
    coordinates = np.concatenate([np.pad(others, ((0, 0), (0, 2))), np.pad(alike, ((0, 0), (7, 0)))])
    digests = digests_of(14)[::-1]
    assert first_digests(digests, coordinates, np.zeros(9, int))[7:13] == [digests[12]] * 6


def test_a_few_of_a_large_class_are() -> None:
    others = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    coordinates = np.concatenate([np.pad(ALIKE[:3], ((0, 0), (12, 0))), np.pad(others, ((0, 0), (0, 2)))])
    digests = digests_of(23)[::-1]
    for targets in (np.zeros(23, int), np.array([1, 1] + [0] * 21), np.zeros((23, 2), bool)):
        first = first_digests(digests, coordinates, targets)
        assert first[:3] == [digests[2]] * 3
        assert first[3:] == digests[3:]


def test_more_images_than_can_be_compared_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MAX_IMAGES", 3)
    assert first_digests(["d", "c", "b", "a"], np.ones((4, 2), np.float32), np.zeros(4, int)) == ["d", "c", "b", "a"]


@pytest.fixture
def split() -> NetworkSplit:
    """Of a hundred images, forty of them labelled, each of which has a double without a label; twenty have none."""
    images = make_images(60)
    groups = groups_of(
        digests_of(100)[::-1], np.concatenate([images, doubles_of(images[:40])]), np.arange(40) % 2, BLOCK_SIZES
    )
    return NetworkSplit.of(digests_of(100)[::-1][:40], groups)


def test_the_double_of_an_image_that_a_network_has_seen_never_judges_it(split: NetworkSplit) -> None:
    digests = digests_of(100)[::-1]
    judges = [digest in split.held_out for digest in digests]
    assert judges[:40] == judges[60:]
    assert judges[:40] == [digest not in split.seen for digest in digests[:40]]
    assert judges[:40] == [fold_of(digest) == JUDGING_FOLD for digest in digests[60:]]
    assert judges[40:60] == [fold_of(digest) == JUDGING_FOLD for digest in digests[40:60]]
    assert 0 < sum(judges[:40]) < 40
    assert 0 < sum(judges[40:60]) < 20


def test_doubles_among_those_who_judge_are_known(split: NetworkSplit) -> None:
    digests = digests_of(100)[::-1]
    for image, double in zip(digests[:40], digests[60:], strict=True):
        assert split.held_out.get(image) == split.held_out.get(double) in (None, double)


def test_who_was_not_compared_never_judges(split: NetworkSplit) -> None:
    assert not split.held_out.keys() & set(digests_of(200)[100:])


def test_who_may_judge_is_kept_beside_the_weights(split: NetworkSplit, tmp_path: Path) -> None:
    split.write(tmp_path)
    assert NetworkSplit.read(tmp_path) == split


def test_the_first_ones_that_were_kept_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / SPLIT_FILE).write_text('{"seen": ["a", "b"], "held_out": ["c"]}')
    assert NetworkSplit.read(tmp_path) == NetworkSplit(seen=frozenset("ab"), held_out={"c": "c"})


class TestHeldOut:
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
    def test_of_each_class_its_share(self, share: float) -> None:
        targets = np.array([0] * 150 + [1] * 50 + [2] * 20)
        drawn = held_out(digests_of(220), make_images(220), targets, BLOCK_SIZES, share)
        for target, size in ((0, 150), (1, 50), (2, 20)):
            assert abs(drawn[targets == target].sum() - share * size) <= 1

    def test_of_sets_of_classes_too(self) -> None:
        targets = np.random.default_rng(1).random((200, 3)) < 0.5
        drawn = held_out(digests_of(200), make_images(200), targets, BLOCK_SIZES, 0.3)
        assert drawn.sum() == 60
        for row in np.unique(targets, axis=0):
            alike = (targets == row).all(axis=1)
            assert abs(drawn[alike].sum() - 0.3 * alike.sum()) <= 1

    def test_content_alone_decides(self) -> None:
        digests, features, targets = np.array(digests_of(100)), make_images(100), np.arange(100) % 2
        drawn = held_out(digests.tolist(), features, targets, BLOCK_SIZES, 0.3)
        order = np.random.default_rng(2).permutation(100)
        again = held_out(digests[order].tolist(), features[order], targets[order], BLOCK_SIZES, 0.3)
        np.testing.assert_array_equal(again, drawn[order])

    def test_near_duplicates_stay_together(self) -> None:
        features = np.repeat(make_images(60), 2, axis=0)
        targets = np.repeat(np.arange(60) % 2, 2)
        features[1::2] *= 1.05
        drawn = held_out(digests_of(120), features, targets, BLOCK_SIZES, 0.3)
        np.testing.assert_array_equal(drawn[::2], drawn[1::2])
        assert abs(drawn.sum() - 36) <= 2
