import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from model import discriminant
from model.discriminant import Moments, fit_lda, fit_one_vs_rest_lda, fit_pool_lda, moments_of, prior_of
from model.logits import softmax


def clusters(n_images: int, n_classes: int = 3, n_dimensions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n_images)
    centres = np.random.default_rng(0).normal(size=(n_classes, n_dimensions))
    targets = np.arange(n_images) % n_classes
    rows = centres[targets] + 0.7 * random.normal(size=(n_images, n_dimensions))
    return rows.astype(np.float32), targets


def one_hot(targets: np.ndarray, n_classes: int = 3) -> np.ndarray:
    return np.eye(n_classes, dtype=np.float32)[targets]


def arrays(moments: Moments) -> list[np.ndarray]:
    return [
        np.array(moments.total), moments.sum, moments.second, moments.class_totals, moments.class_sums
    ]  # fmt: skip


def test_sums_of_parts_make_the_whole() -> None:
    rows, targets = clusters(60)
    whole = moments_of(rows, one_hot(targets))
    part, rest = moments_of(rows[:20], one_hot(targets[:20])), moments_of(rows[20:], one_hot(targets[20:]))
    for got, expected in zip(arrays(part + rest), arrays(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    for got, expected in zip(arrays(whole - part), arrays(rest), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_without_shrinkage_it_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant, "PRIOR_IMAGES_PER_DIMENSION", 0.0)
    monkeypatch.setattr(discriminant, "PRIOR_COUNT", 0.0)
    rows, targets = clusters(91)
    moments = moments_of(rows, one_hot(targets))
    ours = softmax(fit_lda(moments, prior_of(moments, multiple=False)).logits(rows))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, targets).predict_proba(rows)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("n_images", [9, 90, 900])
def test_it_is_shrunk_as_by_so_many_images_per_dimension(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant, "PRIOR_COUNT", 0.0)
    rows, targets = clusters(n_images)
    # With equal variances in all directions shrinkage would change nothing.
    rows *= np.linspace(0.2, 3, rows.shape[1], dtype=np.float32)
    moments = moments_of(rows, one_hot(targets))
    ours = softmax(fit_lda(moments, prior_of(moments, multiple=False)).logits(rows))
    prior_images = 0.35 * rows.shape[1]
    shrunk = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=prior_images / (prior_images + n_images))
    np.testing.assert_allclose(ours, shrunk.fit(rows, targets).predict_proba(rows), atol=1e-3)


def test_each_class_against_the_rest_shrinks_what_is_within_towards_all() -> None:
    n_images = 30
    rows, targets = clusters(n_images)
    rows *= np.linspace(0.2, 3, rows.shape[1], dtype=np.float32)
    moments = moments_of(rows, one_hot(targets))
    ours = fit_one_vs_rest_lda(moments, np.full(3, 1 / 3))
    prior_images = 0.35 * rows.shape[1]
    shrinkage = prior_images / (prior_images + n_images)
    average_variance = rows.var(axis=0).mean()
    for column in range(3):
        sides = [rows[targets == column], rows[targets != column]]
        within = sum(len(side) * np.cov(side.T, ddof=0) for side in sides) / n_images
        covariance = (1 - shrinkage) * within + shrinkage * average_variance * np.eye(rows.shape[1])
        expected = np.linalg.solve(covariance, sides[0].mean(axis=0) - sides[1].mean(axis=0))
        np.testing.assert_allclose(ours.weight[:, column], expected, rtol=1e-3, atol=1e-3)


def test_each_class_against_the_rest_is_the_two_class_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant, "PRIOR_IMAGES_PER_DIMENSION", 0.0)
    rows, targets = clusters(90)
    prior = np.full(3, 1 / 3)
    joint = fit_one_vs_rest_lda(moments_of(rows, one_hot(targets)), prior)
    for column in range(3):
        sides = one_hot((targets == column).astype(int), 2)
        two = fit_lda(moments_of(rows, sides), np.array([2 / 3, 1 / 3]))
        expected = two.logits(rows)[:, 1] - two.logits(rows)[:, 0]
        np.testing.assert_allclose(joint.logits(rows)[:, column], expected, rtol=1e-3, atol=1e-3)


def test_images_without_a_label_help() -> None:
    rows, targets = clusters(6)
    pool, _ = clusters(600)
    test_rows, test_targets = clusters(900)
    moments = moments_of(rows, one_hot(targets))
    alone = fit_lda(moments, prior_of(moments, multiple=False))
    helped = fit_pool_lda(moments, pool, softmax(alone.logits(pool)), multiple=False)
    accuracies = [(each.logits(test_rows).argmax(axis=1) == test_targets).mean() for each in (alone, helped)]
    assert accuracies[1] > accuracies[0] + 0.02


@pytest.mark.parametrize("n_images", [3, 30])
def test_images_that_are_all_alike_give_finite_logits(n_images: int) -> None:
    rows, targets = np.ones((n_images, 4), np.float32), np.arange(n_images) % 3
    moments = moments_of(rows, one_hot(targets))
    for fit, multiple in ((fit_lda, False), (fit_one_vs_rest_lda, True)):
        assert np.isfinite(fit(moments, prior_of(moments, multiple=multiple)).logits(rows)).all()
