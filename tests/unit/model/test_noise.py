import numpy as np
import pytest
from cleanlab.count import get_confident_thresholds
from cleanlab.filter import find_label_issues
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.rank import get_label_quality_scores
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.noise import IMPROBABLE, suspects


def noisy_problem(seed: int, n_images: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that follow true classes, and labels a fifth of which are wrong."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, n_classes, n_images)
    logits = random.normal(size=(n_images, n_classes)) * 1.5 + random.uniform(0.5, 4) * np.eye(n_classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.where(random.random(n_images) < 0.2, random.integers(0, n_classes, n_images), truth)
    targets[:n_classes] = np.arange(n_classes)  # the oracle cannot be asked about classes without a label
    return probabilities, targets


def judged_differently(probabilities: np.ndarray, targets: np.ndarray) -> set[int]:
    """Rows confidently of several classes, but not of the likeliest one, which cleanlab takes; the paper takes the
    likeliest of those."""
    confident = probabilities >= get_confident_thresholds(targets, probabilities) - 1e-6
    of_likeliest = confident[np.arange(len(targets)), probabilities.argmax(axis=1)]
    return set(np.flatnonzero((confident.sum(axis=1) > 1) & ~of_likeliest).tolist())


@settings(max_examples=40, deadline=None)
@example(1, 100, 6)
@given(st.integers(0, 10_000), st.integers(20, 120), st.integers(2, 6))
def test_finds_what_cleanlab_finds(seed: int, n_images: int, n_classes: int) -> None:
    probabilities, targets = noisy_problem(seed, n_images, n_classes)
    found = suspects(probabilities, targets)
    expected = find_label_issues(targets, probabilities, filter_by="confident_learning", n_jobs=1)
    rows = {suspect.row for suspect in found}
    expected |= probabilities[np.arange(n_images), targets] <= IMPROBABLE
    assert rows ^ set(np.flatnonzero(expected).tolist()) <= judged_differently(probabilities, targets)
    quality = get_label_quality_scores(targets, probabilities, method="self_confidence")
    for suspect in found:
        assert suspect.given == (targets[suspect.row],)
        assert suspect.suggested == (probabilities[suspect.row].argmax(),)
        assert suspect.confidence == pytest.approx(1 - quality[suspect.row])
        assert suspect.probability == pytest.approx(probabilities[suspect.row].max())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 120), st.integers(1, 4))
def test_finds_what_cleanlab_finds_where_an_image_may_have_several_classes(
    seed: int, n_images: int, n_classes: int
) -> None:
    columns = [noisy_problem(seed + column, n_images, 2) for column in range(n_classes)]
    probabilities = np.stack([pair[:, 1] for pair, _ in columns], axis=1)
    targets = np.stack([labels == 1 for _, labels in columns], axis=1)
    found = suspects(probabilities, targets)
    expected = find_multilabel_issues_per_class(
        [np.flatnonzero(row).tolist() for row in targets], probabilities, filter_by="confident_learning", n_jobs=1
    )
    disputed = np.zeros_like(targets)
    for suspect in found:
        disputed[suspect.row, list(set(suspect.given) ^ set(suspect.suggested))] = True
        assert suspect.given == tuple(np.flatnonzero(targets[suspect.row]))
        present = [column in suspect.suggested for column in range(n_classes)]
        row = probabilities[suspect.row]
        assert suspect.probability == pytest.approx(np.prod(np.where(present, row, 1 - row)))
    np.testing.assert_array_equal(
        disputed, expected | (np.where(targets, probabilities, 1 - probabilities) <= IMPROBABLE)
    )


def test_a_flipped_label_is_found_and_corrected() -> None:
    targets = np.arange(60) % 3
    probabilities = np.full((60, 3), 0.05, np.float32)
    probabilities[np.arange(60), targets] = 0.9
    targets[7] = 2
    targets[10] = 0
    probabilities[10] = (0.3, 0.4, 0.3)
    (worst,) = suspects(probabilities, targets)
    assert (worst.row, worst.given, worst.suggested) == (7, (2,), (1,))
    assert worst.confidence == pytest.approx(0.95)


def test_an_improbable_label_is_found_where_the_model_is_a_little_less_sure_than_elsewhere() -> None:
    targets = np.arange(12) % 2
    probabilities = np.where(np.eye(2)[targets] == 1, 0.98, 0.02)
    targets[3] = 0
    probabilities[3] = (0.03, 0.97)
    (worst,) = suspects(probabilities, targets)
    assert (worst.row, worst.suggested) == (3, (1,))


def test_most_probably_wrong_comes_first() -> None:
    confidences = [suspect.confidence for suspect in suspects(*noisy_problem(1, 200, 4))]
    assert len(confidences) > 10
    assert confidences == sorted(confidences, reverse=True)


def test_classes_without_a_label_and_no_image_at_all() -> None:
    probabilities, targets = noisy_problem(2, 50, 3)
    wider = np.concatenate([probabilities * 0.999, np.full((50, 1), 0.001)], axis=1)
    assert {suspect.row for suspect in suspects(wider, targets)} == {
        suspect.row for suspect in suspects(probabilities, targets)
    }
    assert suspects(np.empty((0, 3)), np.empty(0, int)) == ()
    assert suspects(np.empty((0, 3)), np.empty((0, 3), bool)) == ()


@pytest.mark.parametrize("targets", [np.zeros(4, int), np.zeros((5, 2), bool)])
def test_shapes_that_do_not_fit_are_refused(targets: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        suspects(np.full((5, 3), 1 / 3), targets)
