import numpy as np
import pytest
from sklearn.decomposition import PCA

from model.preprocessing import (
    MAX_COMPONENTS,
    MAX_PCA_ROWS,
    earlier_block_weight,
    fit_preprocessing,
    principal_components,
)
from model.sampling import drawn_by_content


def features(n_images: int, n_features: int = 30) -> np.ndarray:
    random = np.random.default_rng(n_images)
    return (random.random((n_images, 8)) @ np.random.default_rng(0).random((8, n_features))).astype(np.float16)


@pytest.mark.parametrize("shape", [(12, 30), (80, 30)])
def test_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(1).normal(size=shape).astype(np.float32) * np.linspace(1, 3, shape[1])
    ours = principal_components(rows.astype(np.float32))
    theirs = PCA().fit(rows).components_.T[:, : ours.shape[1]]
    assert ours.shape[1] == min(shape[0] - 1, shape[1])
    np.testing.assert_allclose(np.abs((ours * theirs).sum(axis=0)), 1, atol=1e-3)


def test_there_are_never_more_components_than_allowed() -> None:
    rows = np.random.default_rng(1).normal(size=(300, 400)).astype(np.float32)
    assert principal_components(rows).shape == (400, MAX_COMPONENTS)


@pytest.mark.parametrize("n_images", [1, 2, 50])
def test_images_that_are_all_alike_leave_one_dimension(n_images: int) -> None:
    rows = np.ones((n_images, 6), np.float16)
    preprocessing = fit_preprocessing(rows, (2, 4), 0.5)
    np.testing.assert_array_equal(preprocessing.transform(rows), np.zeros((n_images, 1)))


def test_a_head_on_features_equals_the_map_on_coordinates() -> None:
    rows = features(50)
    preprocessing = fit_preprocessing(rows, (10, 20), 0.25)
    coordinates = preprocessing.transform(rows)
    weight = np.random.default_rng(3).normal(size=(coordinates.shape[1], 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    head = preprocessing.head(weight, bias)
    np.testing.assert_allclose(head.logits(rows), coordinates @ weight + bias, rtol=1e-3, atol=1e-4)


def test_earlier_blocks_count_as_much_as_they_are_told() -> None:
    rows = features(40)
    coordinates = [fit_preprocessing(rows, (10, 20), weight).transform(rows) for weight in (0.0, 1.0)]
    norms = [np.linalg.norm(each - each.mean(axis=0), axis=1) for each in coordinates]
    assert (norms[1] > norms[0]).mean() > 0.9
    assert earlier_block_weight(5) == 0.25
    assert earlier_block_weight(25) == pytest.approx(0.5)
    assert earlier_block_weight(1000) == 1.0


def test_the_same_images_in_another_order_give_the_same_without_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = features(MAX_PCA_ROWS + 500)
    first = fit_preprocessing(rows, (10, 20), 0.5)
    monkeypatch.setattr("model.preprocessing.principal_components", lambda _: pytest.fail("fitted again"))
    assert fit_preprocessing(rows[np.random.default_rng(4).permutation(len(rows))], (10, 20), 0.5) is first


def test_what_makes_a_difference_is_told_apart() -> None:
    rows = features(MAX_PCA_ROWS + 500)
    first = fit_preprocessing(rows, (10, 20), 0.5)
    changed = rows.copy()
    changed[drawn_by_content(rows, 1)] += np.float16(0.5)
    for other in (
        fit_preprocessing(changed, (10, 20), 0.5),
        fit_preprocessing(rows, (20, 10), 0.5),
        fit_preprocessing(rows, (10, 20), 0.25),
        fit_preprocessing(rows, (10, 20), 0.5, seed=1),
    ):
        assert not np.array_equal(other.components, first.components)


def test_the_weight_of_earlier_blocks_mostly_stays_with_one_label_more() -> None:
    weights = {earlier_block_weight(n_labels / 10) for n_labels in range(500, 510)}
    assert len(weights) <= 2
