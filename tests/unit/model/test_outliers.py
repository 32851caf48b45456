import numpy as np
import pytest

from model import outliers as module
from model.duplicates import MAX_IMAGES
from model.outliers import N_NEIGHBOURS, SMALLEST_NUMBER, neighbour_distances, outliers

BLOCK_SIZES = (5, 30)


def make_images(n_images: int, seed: int = 0) -> np.ndarray:
    """Images around one direction of the last block, some nearer to it than others; the first block is noise."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=BLOCK_SIZES[1])
    last = centre + random.uniform(0.2, 0.5, size=(n_images, 1)) * random.normal(size=(n_images, BLOCK_SIZES[1]))
    return np.concatenate([random.normal(size=(n_images, BLOCK_SIZES[0])), last], axis=1).astype(np.float16)


def test_strangers_are_found_the_oddest_first() -> None:
    images = make_images(200)
    random = np.random.default_rng(1)
    images[[40, 90], 5:] = 5 * random.normal(size=(2, BLOCK_SIZES[1]))
    images[140, 5:] = -images[:, 5:].mean(axis=0)  # the opposite of all others
    found = outliers(images, BLOCK_SIZES)
    assert found.rows[0] == 140
    assert set(found.rows[:3].tolist()) == {40, 90, 140}
    assert len(found.rows) < 10
    distances = found.distances[found.rows]
    assert (np.diff(distances) <= 0).all()
    assert distances[0] == pytest.approx(1.74, abs=0.05)
    assert found.usual_distance == pytest.approx(np.median(found.distances))


def test_a_pair_of_strangers_does_not_vouch_for_each_other() -> None:
    images = make_images(200)
    images[[3, 4], 5:] = np.random.default_rng(1).normal(size=BLOCK_SIZES[1])
    assert {3, 4} <= set(outliers(images, BLOCK_SIZES).rows.tolist())


def test_size_and_earlier_blocks_do_not_matter() -> None:
    images = make_images(60)
    other = images.copy()
    other[:, :5] = 7
    other[:, 5:] *= 2
    np.testing.assert_allclose(
        outliers(images, BLOCK_SIZES).distances, outliers(other, BLOCK_SIZES).distances, atol=1e-3
    )


def test_distances_are_the_mean_over_neighbours_however_many_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    between = 1 - directions @ directions.T
    np.fill_diagonal(between, np.inf)
    expected = np.sort(between, axis=1)[:, :N_NEIGHBOURS].mean(axis=1)
    np.testing.assert_allclose(neighbour_distances(rows), expected, atol=1e-5)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(neighbour_distances(rows), expected, atol=1e-5)


@pytest.mark.parametrize("n_images", [0, 1, 2, SMALLEST_NUMBER - 1])
def test_of_few_images_none_is_said_to_be_odd(n_images: int) -> None:
    images = make_images(n_images)
    images[:1, 5:] *= -1
    found = outliers(images, BLOCK_SIZES)
    assert found.rows.tolist() == []
    assert len(found.distances) == n_images
    assert np.isfinite(found.distances).all()


def test_images_all_alike_have_no_outlier() -> None:
    assert outliers(np.ones((100, 35)), BLOCK_SIZES).rows.tolist() == []


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit blocks"):
        outliers(np.ones((50, 34)), BLOCK_SIZES)
    with pytest.raises(ValueError, match=f"at most {MAX_IMAGES}"):
        outliers(np.ones((MAX_IMAGES + 1, 1), np.float16), (1,))
