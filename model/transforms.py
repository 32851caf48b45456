"""From an image file to the pixels a network sees: the one path that training, embedding and serving share.

``to_pixels`` decodes and resizes, ``model.augmentation`` does the same with random changes, ``normalise`` makes the
tensor. Everything but ``normalise`` works without torch, and in any number of threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.image_files import open_image, open_pixels
from model.pixel_budget import PixelLimit

if TYPE_CHECKING:
    import torch

TRANSFORMS_VERSION = 2
"""Part of every backbone's digest: raise it when ``to_pixels`` or ``normalise`` gives other numbers than before."""


class Preset(Protocol):
    """The part of torchvision's ``ImageClassification`` transforms that is needed."""

    resize_size: list[int]
    crop_size: list[int]
    mean: list[float]
    std: list[float]

    @property
    def interpolation(self) -> InterpolationName:
        """How it resizes."""


class InterpolationName(Protocol):
    """torchvision's ``InterpolationMode``."""

    @property
    def value(self) -> str:
        """Its name in small letters, which is also Pillow's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What a network wants to see.

    The shorter side is resized to ``resize_size`` pixels, the centre square of ``crop_size`` cut out;
    ``mean`` and ``std`` are per channel (red, green, blue) on a scale of 0 to 1; ``interpolation`` is
    ``bilinear`` or ``bicubic``. ``n_views`` is 1 for the centre alone, and 2 to see also the whole image, squeezed
    into the square: what is large in the centre and what is at the rim both count then.
    """

    resize_size: int
    crop_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    n_views: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers of views that there are not."""
        if self.n_views not in (1, 2):
            raise ValueError(f"{self.n_views} views: an image can be seen in 1 (its centre) or 2 (and the whole)")

    @classmethod
    def from_preset(cls, preset: Preset, *, n_views: int = 1) -> InputSpec:
        """Take it from the ``transforms()`` of torchvision weights."""
        return cls(
            resize_size=preset.resize_size[0],
            crop_size=preset.crop_size[0],
            mean=cast(tuple[float, float, float], tuple(preset.mean)),
            std=cast(tuple[float, float, float], tuple(preset.std)),
            interpolation=preset.interpolation.value,
            n_views=n_views,
        )

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter, which antialiases when it makes smaller."""
        return Image.Resampling[self.interpolation.upper()]


def to_pixels(source: Path | bytes, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image, resize its shorter side and cut out the centre, in one pass over the pixels needed.

    The same as torchvision's preset but for rounding (and for what decoding a large JPEG at a fraction of its size
    changes, less than half a step of 255 in the mean).

    Returns:
        Pixels (crop_size, crop_size, 3): height, width, RGB.

    Raises:
        UnreadableImage: see ``model.image_files.open_image``.
    """
    with open_image(source, min_side=spec.resize_size, max_pixels=max_pixels) as image:
        return _central_pixels(image, spec)


def to_views(
    source: Path | bytes, spec: InputSpec, *, max_pixels: int, limit: PixelLimit = open_pixels
) -> NDArray[np.uint8]:
    """Decode an image and return all that the network looks at: its centre, then the whole where the spec says so.

    Returns:
        Pixels (n_views, crop_size, crop_size, 3): view, height, width, RGB.

    Raises:
        UnreadableImage: see ``model.image_files.open_image``.
    """
    with open_image(source, min_side=spec.resize_size, max_pixels=max_pixels, limit=limit) as image:
        views = [_central_pixels(image, spec)]
        if spec.n_views > 1:
            views.append(np.asarray(image.resize((spec.crop_size, spec.crop_size), spec.resampling)))
    return np.stack(views)


def _central_pixels(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    shorter = min(image.size)
    left, right = _centre(image.width, shorter, spec)
    top, bottom = _centre(image.height, shorter, spec)
    size = (spec.crop_size, spec.crop_size)
    return np.array(image.resize(size, spec.resampling, box=(left, top, right, bottom)))


def _centre(length: int, shorter: int, spec: InputSpec) -> tuple[float, float]:
    """Return from where to where the centre crop goes along a side of the original, rounding as torchvision does."""
    resized = spec.resize_size * length // shorter
    start = round((resized - spec.crop_size) / 2)
    step = length / resized
    return start * step, min(length, (start + spec.crop_size) * step)


def normalise(
    pixels: NDArray[np.uint8] | torch.Tensor, spec: InputSpec, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Make the tensor that the network takes.

    Args:
        pixels: (n, height, width, 3), 0 to 255.
        spec: Whose mean and standard deviation to use.
        device: Where the tensor should be; the copy is asynchronous when ``pixels`` lies in pinned memory.

    Returns:
        float32 (n, 3, height, width), its memory in channels-last order.
    """
    import torch

    # Without a copy: rows of RGB pixels are what torch calls channels-last.
    images = torch.as_tensor(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    scale, shift = _scale_and_shift(spec, torch.device(device))
    return images.to(torch.float32).mul_(scale).sub_(shift)


@lru_cache(maxsize=16)
def _scale_and_shift(spec: InputSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what pixels are multiplied by and what is then taken off, each (1, 3, 1, 1).

    They are kept, because to send something small to a GPU is to wait for all that it has still to do.
    """
    import torch

    with torch.inference_mode(False):
        mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
        return (1 / (255 * std)).to(device), (mean / std).to(device)
