import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from model.losses import Criterion, as_rows, class_weights, linear_probe, mixup
from model.training import TrainingConfig


def test_rows_are_one_hot_or_as_given() -> None:
    assert as_rows(np.array([2, 0]), 3, multiple=False).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert as_rows(np.array([[True, False], [True, True]]), 2, multiple=True).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"\(2, 1\): expected one class index per image"):
        as_rows(np.array([[1], [0]]), 2, multiple=False)
    with pytest.raises(ValueError, match=r"\(2,\): expected \(n_samples, 2\)"):
        as_rows(np.array([1, 0]), 2, multiple=True)


def test_rare_classes_weigh_more_up_to_the_cap_and_absent_ones_are_harmless() -> None:
    targets = as_rows(np.array([0] * 16 + [1] * 4 + [2]), 4, multiple=False)
    weights = class_weights(targets, multiple=False, cap=3.0)
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 2.0, 3.0, 3.0]))
    assert float(weights[targets.argmax(dim=1)].mean()) == pytest.approx(1)


def test_weight_of_a_class_against_its_absence() -> None:
    targets = torch.tensor([[1.0, 1.0, 0.0]] * 2 + [[0.0, 1.0, 0.0]] * 8)
    torch.testing.assert_close(class_weights(targets, multiple=True, cap=2.5), torch.tensor([2.0, 0.4, 2.5]))


def test_plain_criterion_is_the_log_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    plain = Criterion(multiple=False, weights=torch.ones(2))
    expected = np.log1p(np.exp(-2)) + np.log1p(np.exp(1))
    assert float(plain(logits, targets)) == pytest.approx(expected)
    assert float(plain.log_loss(logits, targets)) == pytest.approx(expected)
    assert int(plain.correct(logits, targets)) == 1


def test_smoothing_and_weights_change_the_training_loss_only() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0]])
    criterion = Criterion(multiple=False, weights=torch.tensor([3.0, 1.0]), label_smoothing=0.2)
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert float(criterion(logits, targets)) == pytest.approx(3 * 0.9 * right + 0.1 * wrong)
    assert float(criterion.log_loss(logits, targets)) == pytest.approx(right)


def test_several_classes_are_right_only_together() -> None:
    criterion = Criterion(multiple=True, weights=torch.ones(2))
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert int(criterion.correct(logits, targets)) == 1
    expected = (3 * np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2
    assert float(criterion.log_loss(logits, targets)) == pytest.approx(expected)


def test_mixup_blends_images_and_targets_by_the_same_share() -> None:
    targets = torch.eye(4)
    images = targets.view(4, 4, 1, 1)
    mixed, mixed_targets = mixup(images, targets, alpha=1.0, generator=np.random.default_rng(0))
    torch.testing.assert_close(mixed.view(4, 4), mixed_targets)
    assert not torch.equal(mixed_targets, targets)
    torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(4))
    assert mixup(images, targets, alpha=0.0, generator=np.random.default_rng(0))[0] is images


def test_linear_probe_is_penalised_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    classes = generator.integers(3, size=60)
    features = (5 + 3 * (generator.normal(size=(60, 4)) + 2 * np.eye(3, 4)[classes])).astype(np.float32)
    criterion = Criterion(multiple=False, weights=torch.ones(3))
    weight, bias = linear_probe(
        torch.from_numpy(features), as_rows(classes, 3, multiple=False), criterion, penalty=1e-3
    )
    # scikit-learn penalises half the squared norm of the weights, over the sum instead of the mean of the losses
    scaled = (features - features.mean(axis=0)) / features.std()
    reference = LogisticRegression(C=1 / (2e-3 * 60), tol=1e-8, max_iter=1000).fit(scaled, classes)
    ours = torch.softmax(torch.from_numpy(features) @ weight.T + bias, dim=1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(scaled), atol=1e-2)


def test_linear_probe_learns_a_thousand_classes() -> None:
    """With the settings for so many; some have three times the images of the others."""
    classes = np.concatenate([np.arange(1000), np.arange(100), np.arange(100)])
    centres = np.random.default_rng(0).normal(size=(1000, 32))

    def draw(seed: int, of_classes: np.ndarray) -> torch.Tensor:
        noise = 0.4 * np.random.default_rng(seed).normal(size=(len(of_classes), 32))
        return torch.from_numpy((2 + 0.01 * (centres[of_classes] + noise)).astype(np.float32))

    config = TrainingConfig.for_labels(len(classes), 1000)
    assert config.mixup_alpha == 0, "with so few images per class a blend shows nothing"
    targets = as_rows(classes, 1000, multiple=False)
    weights = class_weights(targets, multiple=False, cap=config.max_class_weight)
    criterion = Criterion(multiple=False, weights=weights, label_smoothing=config.label_smoothing)
    weight, bias = linear_probe(draw(1, classes), targets, criterion, penalty=config.head_penalty)
    found = (draw(2, np.arange(1000)) @ weight.T + bias).argmax(dim=1).numpy() == np.arange(1000)
    assert found[:100].mean() > 0.9
    assert found[100:].mean() > 0.9


def test_linear_probe_survives_absent_classes_and_constant_features() -> None:
    targets = as_rows(np.array([0, 1, 0, 1]), 3, multiple=False)
    criterion = Criterion(multiple=False, weights=torch.ones(3))
    weight, bias = linear_probe(torch.ones(4, 2), targets, criterion, penalty=1e-3)
    assert torch.isfinite(weight).all()
    assert float(bias[2]) < float(bias[0])
