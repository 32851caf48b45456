from pathlib import Path

import numpy as np
import pytest

from model import folds
from model.folds import JUDGING_FOLD, NetworkSplit, first_digests, fold_groups, fold_of
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
    given = fold_groups(digests_of(80), features, np.arange(80) % 2, BLOCK_SIZES)
    np.testing.assert_array_equal(given, [fold_of(digest) for digest in digests_of(40)] * 2)


def test_images_without_a_double_keep_their_own_fold() -> None:
    given = fold_groups(digests_of(60), make_images(60), np.arange(60) % 3, BLOCK_SIZES)
    np.testing.assert_array_equal(given, [fold_of(digest) for digest in digests_of(60)])


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


def test_who_may_judge_a_network(tmp_path: Path) -> None:
    digests = [f"{number:064x}" for number in range(60)]
    numbers = np.arange(40) % 5
    split = NetworkSplit.of(digests[:40], numbers)
    split.write(tmp_path)
    assert NetworkSplit.read(tmp_path) == split
    assert [split.may_judge(digest) for digest in digests[:40]] == (numbers == JUDGING_FOLD).tolist()
    later = digests[40:]
    assert [split.may_judge(digest) for digest in later] == [fold_of(digest) == JUDGING_FOLD for digest in later]
