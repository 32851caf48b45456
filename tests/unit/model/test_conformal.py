import numpy as np
import pytest

from model.conformal import NOTHING_RULED_OUT, Conformal, cross_fitted_report, fit_conformal

N_CLASSES = 4
N_NEW = 50
N_DRAWS = 300


def draw(n_images: int, random: np.random.Generator, *, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and classes drawn from them before they were sharpened (above 1) or flattened (below)."""
    logits = 1.5 * random.normal(size=(n_images, N_CLASSES))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (true.cumsum(axis=1) > random.random((n_images, 1))).argmax(axis=1)
    claimed = np.exp(sharpness * logits)
    return (claimed / claimed.sum(axis=1, keepdims=True)).astype(np.float32), targets


def draw_several(n_images: int, random: np.random.Generator, *, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    logits = 2 * random.normal(size=(n_images, N_CLASSES)) - np.arange(N_CLASSES)
    targets = 1 / (1 + np.exp(-logits)) > random.random(logits.shape)
    return (1 / (1 + np.exp(-sharpness * logits))).astype(np.float32), targets


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 0.3])
@pytest.mark.parametrize("n_images", [10, 50, 500])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_truth_is_left_out_as_rarely_as_asked_whatever_the_probabilities(
    alpha: float, n_images: int, sharpness: float
) -> None:
    random = np.random.default_rng(0)
    coverages = []
    for _ in range(N_DRAWS):
        conformal = fit_conformal(*draw(n_images, random, sharpness=sharpness), alpha)
        probabilities, targets = draw(N_NEW, random, sharpness=sharpness)
        coverages.append(conformal.prediction_set(probabilities)[np.arange(N_NEW), targets].mean())
    assert np.mean(coverages) > 1 - alpha - 0.01
    if n_images == 500 and alpha == 0.3:
        # The most probable class is always kept, which alone is right more often where the sets would be small.
        assert np.mean(coverages) < 1 - alpha + 0.05


@pytest.mark.parametrize("sharpness", [1.0, 4.0, 0.3])
@pytest.mark.parametrize("n_images", [10, 50, 500])
def test_of_several_classes_each_is_ruled_out_and_made_certain_wrongly_as_rarely_as_asked(
    n_images: int, sharpness: float
) -> None:
    random, alpha = np.random.default_rng(0), 0.2
    n_present, n_possible, n_absent, n_certain = np.zeros((4, N_CLASSES))
    for _ in range(N_DRAWS):
        conformal = fit_conformal(*draw_several(n_images, random, sharpness=sharpness), alpha)
        probabilities, targets = draw_several(N_NEW, random, sharpness=sharpness)
        n_present += targets.sum(axis=0)
        n_possible += (conformal.prediction_set(probabilities) & targets).sum(axis=0)
        n_absent += (~targets).sum(axis=0)
        n_certain += (conformal.certain(probabilities) & ~targets).sum(axis=0)
    assert (n_possible / n_present > 1 - alpha - 0.02).all()
    assert (n_certain / n_absent < alpha + 0.02).all()
    if n_images == 500:
        assert (n_possible / n_present < 1 - alpha + 0.03).all()
        assert (n_certain / n_absent > alpha - 0.03).all()


@pytest.mark.parametrize("n_images", [0, 1, 18])
def test_few_images_rule_nothing_out(n_images: int) -> None:
    probabilities, targets = draw(n_images, np.random.default_rng(1), sharpness=1)
    conformal = fit_conformal(probabilities, targets, 0.1)
    assert conformal == NOTHING_RULED_OUT
    assert conformal.prediction_set(np.array([[1.0, 0, 0, 0]])).all()
    several = fit_conformal(probabilities, targets[:, None] == np.arange(N_CLASSES), 0.1)
    assert several.prediction_set(np.zeros((1, N_CLASSES))).all()
    assert not several.certain(np.ones((1, N_CLASSES))).any()


def test_the_threshold_is_the_conservative_quantile() -> None:
    """Of 19 true probabilities two may lie at or below it: (19 + 1) 0.1 = 2."""
    of_truth = np.linspace(0.05, 0.95, 19)
    probabilities = np.stack([of_truth, 1 - of_truth], axis=1)
    assert fit_conformal(probabilities, np.zeros(19, int), 0.1).possible_from == (pytest.approx(0.1),)
    assert fit_conformal(probabilities[1:], np.zeros(18, int), 0.1).possible_from == (0.0,)


def test_a_set_is_never_empty_and_one_alone_is_certain() -> None:
    conformal = Conformal(possible_from=(0.4,))
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.45, 0.05], [0.35, 0.33, 0.32]])
    expected = [[True, False, False], [True, True, False], [True, False, False]]
    np.testing.assert_array_equal(conformal.prediction_set(probabilities), expected)
    np.testing.assert_array_equal(conformal.certain(probabilities).any(axis=1), [True, False, True])


def test_what_is_not_possible_is_not_certain() -> None:
    """Where both thresholds of a class leave a gap it is neither likely absent nor likely present: ruled out."""
    conformal = Conformal(possible_from=(0.7, 0.2), certain_above=(0.3, 0.6))
    probabilities = np.array([[0.5, 0.5], [0.8, 0.7], [0.1, 0.1]])
    np.testing.assert_array_equal(
        conformal.prediction_set(probabilities), [[False, True], [True, True], [False, False]]
    )
    np.testing.assert_array_equal(conformal.certain(probabilities), [[False, False], [True, True], [False, False]])


@pytest.mark.parametrize("multiple", [False, True])
def test_the_report_foretells_how_sets_do_on_new_images(multiple: bool) -> None:
    random = np.random.default_rng(2)
    drawing = draw_several if multiple else draw
    probabilities, targets = drawing(1500, random, sharpness=2)
    report = cross_fitted_report(probabilities, targets, np.arange(1500) % 5)
    conformal = fit_conformal(probabilities, targets)
    fresh, truth = drawing(4000, random, sharpness=2)
    possible, certain = conformal.prediction_set(fresh), conformal.certain(fresh)
    if multiple:
        coverage, decided = np.where(truth, possible, ~certain).mean(), (certain | ~possible).mean()
    else:
        coverage, decided = possible[np.arange(4000), truth].mean(), (possible.sum(axis=1) == 1).mean()
    assert report.n == 1500
    assert report.coverage == pytest.approx(coverage, abs=0.03)
    assert report.coverage == pytest.approx(0.9, abs=0.02)
    assert report.mean_size == pytest.approx(possible.sum(axis=1).mean(), abs=0.1)
    assert report.share_decided == pytest.approx(decided, abs=0.04)


def test_sets_are_reported_on_images_that_the_threshold_does_not_come_from() -> None:
    """All in one fold: no other image is left to learn a threshold from."""
    probabilities, targets = draw(100, np.random.default_rng(3), sharpness=1)
    report = cross_fitted_report(probabilities, targets, np.zeros(100, int))
    assert (report.coverage, report.mean_size, report.share_decided) == (1.0, N_CLASSES, 0.0)


@pytest.mark.parametrize("shape", [(0,), (0, N_CLASSES)])
def test_no_image_is_a_report_of_zeros(shape: tuple[int, ...]) -> None:
    report = cross_fitted_report(
        np.zeros((0, N_CLASSES)), np.zeros(shape, bool if len(shape) == 2 else int), np.zeros(0, int)
    )
    assert (report.n, report.coverage, report.mean_size, report.share_decided) == (0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_an_absurd_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Conformal(alpha=alpha)


@pytest.mark.parametrize("thresholds", [(), (-0.1,), (1.1, 0.5), (float("nan"),)])
def test_absurd_thresholds_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        Conformal(possible_from=thresholds)
    with pytest.raises(ValueError, match="probabilities"):
        Conformal(certain_above=(*thresholds, 2.0))
