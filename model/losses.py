"""What training minimises: cross-entropy for one class per image, binary cross-entropy for several.

Targets are always float rows (n_samples, n_classes) that may be soft; one-hot for one class per image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional


def as_rows(targets: NDArray[np.int64] | NDArray[np.bool_], class_count: int, *, multiple: bool) -> torch.Tensor:
    """Return targets as float rows.

    Args:
        targets: class index of each image (n_samples,), or with ``multiple`` which classes it has
            (n_samples, n_classes).
        class_count: number of classes.
        multiple: whether an image has any number of classes.

    Raises:
        ValueError: for a shape or a class index that does not fit.
    """
    rows = torch.as_tensor(np.asarray(targets))
    if multiple:
        if rows.ndim != 2 or rows.shape[1] != class_count:
            raise ValueError(f"targets of shape {tuple(rows.shape)}: expected (n_samples, {class_count})")
        return rows.float()
    if rows.ndim != 1:
        raise ValueError(f"targets of shape {tuple(rows.shape)}: expected one class index per image, (n_samples,)")
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < class_count:
        raise ValueError(f"class indices {int(rows.min())} to {int(rows.max())}: expected 0 to {class_count - 1}")
    return functional.one_hot(rows.long(), class_count).float()


def class_weights(targets: torch.Tensor, *, multiple: bool, cap: float) -> torch.Tensor:
    """Return the weight of each class (n_classes,) that makes rare classes count more.

    The square root of the inverse frequency, at most ``cap``: full balancing over-fits the few images of a
    rare class (Mahajan et al. 2018, section 2.2). For several classes per image it is the weight of
    "has this class" against "has it not"; for one class the mean weight over the images is 1.

    Args:
        targets: rows of the training images (n_samples, n_classes).
        multiple: whether an image has any number of classes.
        cap: largest ratio of two weights, at least 1.
    """
    counts = targets.sum(dim=0)
    if multiple:
        return ((len(targets) - counts) / counts.clamp(min=1)).sqrt().clamp(1 / cap, cap)
    weights = (counts.max() / counts.clamp(min=1)).sqrt().clamp(max=cap)
    return weights * counts.sum() / (weights * counts).sum()


class Criterion(nn.Module):
    """The training loss, and the plain log loss and accuracy that epochs are compared by."""

    weights: torch.Tensor

    def __init__(self, *, multiple: bool, weights: torch.Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.multiple = multiple
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the weighted, smoothed loss summed over the images; both arguments are (n_samples, n_classes)."""
        logits = logits.float()
        rest = 0.5 if self.multiple else 1 / logits.shape[1]
        targets = targets + self.label_smoothing * (rest - targets)
        if self.multiple:
            losses = functional.binary_cross_entropy_with_logits(
                logits, targets, pos_weight=self.weights, reduction="none"
            )
            return losses.mean(dim=1).sum()
        return functional.cross_entropy(logits, targets, weight=self.weights, reduction="sum")

    def log_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the log loss in nats, summed over the images, without weights or smoothing; lower is better."""
        logits = logits.float()
        if self.multiple:
            return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1).sum()
        return functional.cross_entropy(logits, targets, reduction="sum")

    def correct(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return how many images got exactly the right class or classes."""
        if self.multiple:
            return ((logits > 0) == (targets > 0.5)).all(dim=1).sum()
        return (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()


def mixup(
    inputs: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each image and its target with another of the batch (Zhang et al. 2018).

    Of maps it blends what stages of the network have made of the images (Verma et al.: "Manifold Mixup", 2019).

    The batch is in random order, so its mirror image is as good a choice of partners as any, and none that has to
    be sent to the device.

    Args:
        inputs: images (n_samples, 3, height, width), or maps (n_samples, ...).
        targets: (n_samples, n_classes).
        alpha: both parameters of the beta distribution that the share is drawn from; 0 blends nothing.
        generator: source of randomness.
    """
    if alpha == 0:
        return inputs, targets
    share = float(generator.beta(alpha, alpha))
    return torch.lerp(inputs.flip(0), inputs, share), torch.lerp(targets.flip(0), targets, share)


def linear_probe(
    features: torch.Tensor, targets: torch.Tensor, criterion: Criterion, *, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a linear head on frozen features with full-batch L-BFGS.

    Args:
        features: (n_samples, n_features).
        targets: (n_samples, n_classes).
        criterion: the loss.
        penalty: weight of the squared norm, for features of mean 0 and mean variance 1.

    Returns:
        Weight (n_classes, n_features) and bias (n_classes,) for the features as given.
    """
    mean, scale = features.mean(dim=0), features.std(correction=0).clamp(min=1e-6)
    inputs = (features - mean) / scale
    weight = features.new_zeros(targets.shape[1], features.shape[1]).requires_grad_()
    bias = features.new_zeros(targets.shape[1]).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        # the bias is penalised too: it would run away for a class without images
        norm = weight.square().sum() + bias.square().sum()
        loss: torch.Tensor = criterion(inputs @ weight.T + bias, targets) / len(inputs) + penalty * norm
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ mean
