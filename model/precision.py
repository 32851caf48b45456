"""Where bfloat16 is worth it: half the bytes, and on processors made for it half the time."""

from __future__ import annotations

import torch
from torch import nn

_CAPABILITIES = ("avx512_bf16", "amx_bf16", "sve_bf16")
_CAPABILITIES_TRAINING = ("avx512_bf16", "amx_bf16")
"""Training was never measured with ARM's instructions."""


def bfloat16_pays(device: str, *, training: bool = False) -> bool:
    """Tell whether bfloat16 is faster than float32 on a device, ``cpu`` or ``cuda``: not where it is emulated.

    For training this holds of networks that were given to ``keep_depthwise_in_float32``.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in (_CAPABILITIES_TRAINING if training else _CAPABILITIES))


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Let depthwise convolutions compute in float32 under autocast, in place, and round what they return as it would.

    Of those in bfloat16 a processor has no fast backward pass: with them, small networks took longer than in float32
    (``benchmarks/precision.py``).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = _Float32Conv2d


class _Float32Conv2d(nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float()).to(images.dtype)
