"""Images changed at random, so that a network which trains on few sees many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from model.image_files import open_image
from model.transforms import InputSpec

_CROP_AREA = (0.25, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_GREY = (128, 128, 128)


def training_pixels(
    source: Path | bytes, spec: InputSpec, *, max_pixels: int, generator_seed: int
) -> NDArray[np.uint8]:
    """Decode an image and change it at random: crop, mirror, and one operation of TrivialAugmentWide.

    The same seed gives the same pixels.

    Returns:
        Pixels (crop_size, crop_size, 3): height, width, RGB.

    Raises:
        UnreadableImage: see ``open_image``.
    """
    generator = np.random.default_rng(generator_seed)
    size = (spec.crop_size, spec.crop_size)
    with open_image(source, min_side=spec.resize_size, max_pixels=max_pixels) as image:
        cropped = image.resize(size, spec.resampling, box=_random_box(image.size, generator))
    if generator.random() < 0.5:
        cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(_trivial_augment(cropped, generator))


def _random_box(size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw a part of the image by area and by ratio of its sides, as torchvision's RandomResizedCrop does."""
    width, height = size
    area = width * height * generator.uniform(*_CROP_AREA)
    ratio = np.exp(generator.uniform(*np.log(_CROP_RATIO)))
    box_width = min(width, max(1.0, float(np.sqrt(area * ratio))))
    box_height = min(height, max(1.0, float(np.sqrt(area / ratio))))
    left = generator.uniform(0, width - box_width)
    top = generator.uniform(0, height - box_height)
    return left, top, min(width, left + box_width), min(height, top + box_height)


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=_GREY)


# The operation, and its argument at full strength; operations whose change has a sign get it drawn.
_OPERATIONS: tuple[tuple[Callable[[Image.Image, float], Image.Image], float], ...] = (
    (lambda image, _: image, 0.0),
    (lambda image, shear: _affine(image, (1, shear, 0, 0, 1, 0)), 0.99),
    (lambda image, shear: _affine(image, (1, 0, 0, shear, 1, 0)), 0.99),
    (lambda image, part: _affine(image, (1, 0, part * image.width, 0, 1, 0)), 32 / 224),
    (lambda image, part: _affine(image, (1, 0, 0, 0, 1, part * image.height)), 32 / 224),
    (lambda image, degrees: image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_GREY), 135.0),
    (lambda image, change: ImageEnhance.Brightness(image).enhance(1 + change), 0.99),
    (lambda image, change: ImageEnhance.Color(image).enhance(1 + change), 0.99),
    (lambda image, change: ImageEnhance.Contrast(image).enhance(1 + change), 0.99),
    (lambda image, change: ImageEnhance.Sharpness(image).enhance(1 + change), 0.99),
    (lambda image, bits: ImageOps.posterize(image, 8 - round(abs(bits))), 6.0),
    (lambda image, part: ImageOps.solarize(image, round(255 * (1 - abs(part)))), 1.0),
    (lambda image, _: ImageOps.autocontrast(image), 0.0),
    (lambda image, _: ImageOps.equalize(image), 0.0),
)


def _trivial_augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Apply one operation at a strength drawn evenly (Müller and Hutter, TrivialAugment, ICCV 2021; wide ranges)."""
    operation, full_strength = _OPERATIONS[generator.integers(len(_OPERATIONS))]
    return operation(image, full_strength * generator.uniform(-1, 1))
