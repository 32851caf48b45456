"""Training with several processes of one machine: what the ranks of a ``torch.distributed`` group exchange.

Every batch is shared out over the ranks and its gradient summed again, so a group learns what one process
would. Without an initialised group all of it holds for a group of one, at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

T = TypeVar("T")


def in_group() -> bool:
    """Tell whether this process belongs to a group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return this process's place in the group, from 0."""
    return distributed.get_rank() if in_group() else 0


def group_size() -> int:
    """Return the number of processes in the group."""
    return distributed.get_world_size() if in_group() else 1


def local_device(device: str) -> torch.device:
    """Return the device of this rank: with ``cuda`` in a group each rank takes a GPU of its own."""
    if device == "cuda" and in_group():
        device = f"cuda:{rank() % torch.cuda.device_count()}"
    return torch.device(device)


def shard(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return this rank's part of ``rows``; the parts of all ranks are disjoint and together are all rows."""
    return rows[rank() :: group_size()]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add up ``values`` of all ranks in place, so that every rank holds the sums, and return them."""
    if in_group():
        distributed.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all ranks; a rank whose part of the batch was empty counts as zeros."""
    if not in_group():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in trained]
    # one message instead of hundreds: the time of an all-reduce of small tensors is all latency
    flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    sums = torch.split(flat, [each.numel() for each in gradients])
    torch._foreach_copy_(gradients, [each.view_as(own) for each, own in zip(sums, gradients, strict=True)])


def copy_from_first_rank(module: torch.nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if in_group():
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)


def average_buffers(module: torch.nn.Module) -> None:
    """Give every rank the mean of all ranks' floating-point buffers: running statistics differ between shards."""
    if in_group():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(sum_over_ranks(buffer.clone()) / group_size())


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in their order."""
    if not in_group():
        return [value]
    values: list[Any] = [None] * group_size()
    distributed.all_gather_object(values, value)
    return cast(list[T], values)
