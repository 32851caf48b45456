"""Pretrained networks as torchvision builds them, for the peers: loaded from the same files as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
SQUEEZE = v2.Resize((224, 224))

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """The name of a torchvision architecture, and a file with its weights."""

    name: str
    weights: Path

    @classmethod
    def find(cls, name: str, folder: Path) -> Pretrained:
        """Find the weights by name, e.g. ``densenet121-keras.pth`` for ``densenet121``."""
        files = [path for path in sorted(folder.glob(f"{name}[-.]*")) if path.suffix in (".pth", ".pt")]
        if len(files) != 1:
            raise SystemExit(f"{folder} has {len(files)} files {name}*.pth: exactly one state dict is needed")
        return cls(name=name, weights=files[0])

    def network(self) -> nn.Module:
        """Return the whole network, with its 1,000 classes of ImageNet."""
        network: nn.Module = torchvision.models.get_model(self.name, weights=None)
        network.load_state_dict(torch.load(self.weights, weights_only=True))
        return network

    def trunk(self) -> tuple[nn.Module, int]:
        """Return the network without its last layer, and the number of features it gives instead."""
        network = self.network()
        name, last = list(network.named_modules())[-1]
        if not isinstance(last, nn.Linear):
            raise SystemExit(f"{self.name} ends in {type(last).__name__}: the peers need a last linear layer")
        network.set_submodule(name, nn.Identity())
        return network, last.in_features


def accelerate(network: nn.Module, device: str) -> None:
    """Let a network compute in bfloat16 wherever that is safe, channels last, for speed.

    Its weights stay in float32, and what it returns is in float32 again.
    """
    network.to(memory_format=torch.channels_last)
    in_bfloat16 = torch.autocast(device, torch.bfloat16)(network.forward)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return in_bfloat16(images).float()  # type: ignore[no-any-return]

    network.forward = forward


def read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def stack(images: Sequence[Image.Image], transform: Transform, device: str) -> torch.Tensor:
    """Return a batch, float32 (n, 3, height, width)."""
    return torch.stack([transform(image) for image in images]).to(device)


def outputs(
    network: nn.Module,
    paths: Sequence[Path],
    *,
    transform: Transform,
    device: str,
) -> NDArray[np.float32]:
    """Return what a network in eval mode makes of images, (n, n_outputs)."""
    network.to(device).to(memory_format=torch.channels_last).eval()
    # larger batches fall out of the processor's cache
    size = 8 if device == "cpu" else 128
    rows = []
    with torch.inference_mode():
        for start in range(0, len(paths), size):
            images = stack([read_rgb(path) for path in paths[start : start + size]], transform, device)
            rows.append(network(images.contiguous(memory_format=torch.channels_last)).cpu())
    return torch.cat(rows).numpy()
