"""How batches are computed while training: device, precision, and in parts where memory is short.

Nothing is compiled: on a processor that took up to most of a minute for each shape of a batch, and on a GPU nobody
measured it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import torch
from torch import nn

from model.batches import Batch
from model.precision import bfloat16_pays, keep_depthwise_in_float32
from model.staging import claim
from model.transforms import InputSpec, normalise

log = structlog.get_logger()


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Make a GPU compute the same again from the same; a CPU does so in any case.

    Of its kernels those are chosen that add up in a fixed order. Where an operation has none torch warns, and
    goes on.
    """
    if device.type != "cuda":
        yield
        return
    # cuBLAS is told in no other way to keep apart what works at the same time
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # noqa: TID251 - written, not read
    memory: Any = torch.utils.deterministic  # the stubs miss its only property
    mode, fills = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False  # takes time and helps only against reading what nobody wrote
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fills


class Execution:
    """Runs batches on a device, in bfloat16 where that pays.

    A batch that does not fit in the device's memory is computed in halves, quarters and so on from then on;
    sums over a batch, gradients among them, stay what they were.

    Args:
        device: where to compute.
        spec: what the network wants to see.
        largest_part: most images to compute at once.
    """

    def __init__(self, device: torch.device, spec: InputSpec, *, largest_part: int) -> None:
        self.device = device
        self.largest_part = largest_part
        self._spec = spec
        self._bfloat16 = bfloat16_pays(device.type, training=True)

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, in the form that trains fastest there."""
        if self._bfloat16 and self.device.type == "cpu":
            keep_depthwise_in_float32(network)
        network.to(self.device).to(memory_format=torch.channels_last)

    def tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch's images, normalised (n_samples, 3, height, width), or maps, and its targets on the device."""
        inputs, targets = claim(batch.inputs), claim(batch.targets).to(self.device, non_blocking=True)
        if inputs.dtype is torch.uint8:
            return normalise(inputs, self._spec, self.device), targets
        return inputs.to(self.device, torch.float32), targets

    def forward(
        self, compute: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, part: slice
    ) -> torch.Tensor:
        """Return in float32 what a network computes of a part of a batch."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            return compute(inputs[part]).float()

    def in_parts(
        self,
        n_samples: int,
        compute: Callable[[slice], torch.Tensor],
        *,
        restart: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """Call ``compute`` on consecutive parts of a batch and return what it returned.

        Args:
            n_samples: size of the batch.
            compute: given the part as a slice.
            restart: undoes what ``compute`` has accumulated, before all parts are computed again as smaller ones.

        Raises:
            torch.OutOfMemoryError: not even a single image fits.
        """
        while True:
            try:
                return [
                    compute(slice(start, start + self.largest_part)) for start in range(0, n_samples, self.largest_part)
                ]
            except torch.OutOfMemoryError:
                if self.largest_part == 1:
                    raise
                self.largest_part = min(self.largest_part, n_samples) // 2 or 1
            # outside the handler: the exception's traceback holds on to the tensors that did not fit
            log.warning("out of device memory, computing smaller parts", largest_part=self.largest_part)
            torch.cuda.empty_cache()
            if restart is not None:
                restart()
