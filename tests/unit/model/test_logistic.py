import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from model import logistic
from model.logistic import fit_multinomial, fit_one_vs_rest
from model.logits import sigmoid, softmax


@pytest.fixture(autouse=True)
def _to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1000)
    monkeypatch.setattr(logistic, "MAX_ITERATION_CLASSES", 10_000)


def examples(n_dimensions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    targets = random.integers(0, 3, 120)
    rows = random.normal(size=(120, n_dimensions)) + np.eye(3, n_dimensions)[targets]
    return rows.astype(np.float32), targets


@pytest.mark.parametrize("n_dimensions", [5, 300])
def test_one_class_out_of_several_is_scikit_learns(n_dimensions: int) -> None:
    rows, targets = examples(n_dimensions)
    ours = softmax(fit_multinomial(rows, np.eye(3, dtype=np.float32)[targets], 1.0).logits(rows))
    theirs = LogisticRegression(C=1.0, tol=1e-8).fit(rows, targets).predict_proba(rows)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("n_dimensions", [5, 300])
def test_each_class_by_itself_is_scikit_learns(n_dimensions: int) -> None:
    rows, targets = examples(n_dimensions)
    sides = np.stack([targets == 0, targets > 0, targets == 2], axis=1)
    ours = sigmoid(fit_one_vs_rest(rows, sides, 1.0).logits(rows))
    for column in range(3):
        theirs = LogisticRegression(C=1.0, tol=1e-8).fit(rows, sides[:, column]).predict_proba(rows)[:, 1]
        np.testing.assert_allclose(ours[:, column], theirs, atol=2e-3)


def test_with_very_many_classes_the_few_steps_go_into_telling_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", logistic.MIN_ITERATIONS)
    targets = np.arange(600) % 300
    rows = (0.15 * np.random.default_rng(0).normal(size=(300, 40))[targets]).astype(np.float32)
    logits = fit_one_vs_rest(rows, np.eye(300, dtype=bool)[targets], 1000.0).logits(rows)
    members = logits[np.arange(600), targets]
    assert members.mean() - logits.mean() > 3
