"""How fast which part of the network learns: optimizer, learning rates over time, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


def make_optimizer(
    groups: Sequence[Sequence[nn.Parameter]],
    head: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float,
    first_layer_share: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """Make AdamW with a learning rate for each layer group.

    Args:
        groups: the network's parameters from input to output.
        head: learns with ``head_learning_rate``.
        learning_rate: rate of the last group.
        head_learning_rate: rate of the head.
        first_layer_share: rate of the first group as a share of the last one's, geometric in between (Howard &
            Ruder 2018, section 3.2): the first layers of a pretrained network are the most general ones.
        weight_decay: for matrices and kernels only, not for biases and normalisation.
    """
    last = len(groups) - 1
    rates = [learning_rate * first_layer_share ** ((last - place) / max(1, last)) for place in range(len(groups))]
    parameter_groups = []
    for parameters, rate in [*zip(groups, rates, strict=True), (list(head.parameters()), head_learning_rate)]:
        for decayed in (True, False):
            chosen = [each for each in parameters if each.requires_grad and (each.ndim > 1) is decayed]
            if chosen:
                decay = weight_decay if decayed else 0.0
                parameter_groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(parameter_groups)


def warmup_cosine(step: int, *, n_warmup_steps: int, n_steps: int) -> float:
    """Return the factor on all learning rates: linear from 0 to 1, then half a cosine to 0 (Loshchilov & Hutter 2017).

    Args:
        step: counted from 0.
        n_warmup_steps: length of the linear part.
        n_steps: length of the whole schedule.
    """
    if step < n_warmup_steps:
        return (step + 1) / (n_warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps)))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float, n_updates: int) -> None:
    """Move the exponential moving average of the weights towards ``model``; buffers are copied.

    Args:
        average: changed in place.
        model: the weights after the newest step.
        decay: share of the old average; less during the first updates, so that it does not cling to the start
            (the ``num_updates`` rule of TensorFlow's ExponentialMovingAverage).
        n_updates: updates so far.
    """
    share = 1 - min(decay, (1 + n_updates) / (10 + n_updates))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    buffers = list(zip(average.buffers(), model.buffers(), strict=True))
    for dtype in {old.dtype for old, _ in buffers}:  # a group of one type is one kernel on a GPU
        old, new = zip(*((old, new) for old, new in buffers if old.dtype is dtype), strict=True)
        torch._foreach_copy_(old, new)


def freeze_batch_norm_statistics(model: nn.Module) -> None:
    """Keep running means and variances as they are, whatever the model's mode; scale and shift still learn.

    Statistics of small batches are noise, and networks converted from folded weights have none to fall back on.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
