import numpy as np
import pytest

from model import duplicates
from model.duplicates import MAX_IMAGES, NONE_ALIKE, duplicate_groups, most_alike, near_duplicates

BLOCK_SIZES = (8, 12, 40)


def make_images(n_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n_images, sum(BLOCK_SIZES)))


def doubles_of(features: np.ndarray, seed: int = 1) -> np.ndarray:
    return features * 1.05 + 0.01 * np.random.default_rng(seed).normal(size=features.shape)


def test_doubles_are_found_and_nothing_else() -> None:
    images = make_images(50)
    features = np.concatenate([images, doubles_of(images[:3], 1), doubles_of(images[:1], 2)]).astype(np.float16)
    groups = [group.tolist() for group in near_duplicates(features, BLOCK_SIZES)]
    assert groups == [[0, 50, 53], [1, 51], [2, 52]]


def test_different_images_are_in_no_group() -> None:
    assert near_duplicates(make_images(300).astype(np.float16), BLOCK_SIZES) == []


@pytest.mark.parametrize("n_images", [0, 1])
def test_nothing_to_compare(n_images: int) -> None:
    assert near_duplicates(make_images(n_images), BLOCK_SIZES) == []
    assert duplicate_groups(np.ones((n_images, 3), np.float32)).tolist() == [0] * n_images


def test_a_group_holds_together_by_its_links() -> None:
    """Steps of 20 degrees: each neighbour is alike (cosine 0.94), the ends are at right angles and more."""
    angles = np.deg2rad([0, 180, 20, 40, 60, 80, 100])
    groups = duplicate_groups(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    assert len(set(groups[[0, 2, 3, 4, 5, 6]].tolist())) == 1
    assert groups[1] != groups[0]


def test_groups_do_not_depend_on_how_many_rows_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinates = np.random.default_rng(3).normal(size=(90, 5)).astype(np.float32)
    at_once = duplicate_groups(coordinates)
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", 7)
    together = at_once[:, None] == at_once
    in_parts = duplicate_groups(coordinates)
    np.testing.assert_array_equal(in_parts[:, None] == in_parts, together)
    assert 1 < len(set(at_once.tolist())) < 90


@pytest.mark.parametrize("n_leading", [1, 4, 30])
@pytest.mark.parametrize("most_apart", [0, 100_000])
def test_groups_are_those_of_every_pair_compared(
    monkeypatch: pytest.MonkeyPatch, n_leading: int, most_apart: int
) -> None:
    generator = np.random.default_rng(4)
    images = generator.normal(size=(60, 30))
    coordinates = np.concatenate([images, images[:20] + 0.2 * generator.normal(size=(20, 30))]).astype(np.float32)
    directions = coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True)
    alike = directions @ directions.T > duplicates.LIKENESS
    monkeypatch.setattr(duplicates, "N_LEADING", n_leading)
    monkeypatch.setattr(duplicates, "MAX_PAIRS_APART", most_apart)
    groups = duplicate_groups(coordinates)
    np.testing.assert_array_equal(groups[:, None] == groups, alike)
    assert len(set(groups.tolist())) == 60


def test_images_without_features_of_their_own_are_like_no_other() -> None:
    assert len(set(duplicate_groups(np.zeros((4, 3), np.float32)).tolist())) == 4


def test_too_many_images_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        duplicate_groups(np.zeros((MAX_IMAGES + 1, 1), np.float32))


def test_the_most_alike_points_the_same_way_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", 2)
    others = np.array([[1, 0], [0, 9], [0, 0], [5, 5]], np.float32)
    images = np.array([[3, 0.1], [0, 0.1], [1, 2], [2, 2], [-9, 1]], np.float32)
    assert most_alike(images, others).tolist() == [0, 1, 3, 3, NONE_ALIKE]
    assert most_alike(images[:0], others).tolist() == []
