"""From an image file to the pixels a network sees: the one path that training, embedding and serving share.

``to_pixels`` decodes and resizes, ``training_pixels`` does the same with random changes, ``normalise`` makes the
tensor. Everything but ``normalise`` works without torch, and in any number of threads at once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from model.pixel_budget import PixelBudget, PixelLimit

if TYPE_CHECKING:
    import torch

TRANSFORMS_VERSION = 2
"""Part of every backbone's digest: raise it when ``to_pixels`` or ``normalise`` gives other numbers than before."""

OUT_OF_MEMORY = "it cannot be decoded in the memory there is for one image"

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_DRAFT_OVERSAMPLING = 2
_READ_AT_ONCE_BYTES = 1 << 24  # Pillow's 64 KiB cost a large JPEG one twentieth more time
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders are known to raise on damaged files, none of which tells anything but "damaged".
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


_open_pixels = PixelBudget()


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


class OversizedImage(UnreadableImage):
    """An image with more pixels than allowed."""


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


@contextmanager
def open_image(
    source: Path | bytes, *, min_side: int | None, max_pixels: int, limit: PixelLimit = _open_pixels
) -> Iterator[Image.Image]:
    """Decode an image upright and in RGB; of an animation the first frame.

    Transparent parts become white; more than 8 bits per channel are scaled down.

    Args:
        source: A file, or its bytes.
        min_side: The shorter side needed in the end, in pixels. A JPEG that is larger may be decoded at a half, a
            quarter or an eighth of its size, which is much faster, but never to less than twice this.
        max_pixels: Most pixels allowed, checked on the file's own size before anything is decoded.
        limit: Keeps all images that are open at a time to ``max_pixels`` together; those of all threads without it.

    Raises:
        OversizedImage: it has more pixels than allowed.
        UnreadableImage: it is missing, damaged, truncated or not a JPEG, PNG, WebP, GIF, BMP or TIFF.
    """
    with ExitStack() as held:
        yield _decode(source, min_side, max_pixels, lambda n: held.enter_context(limit.hold(n, at_most=max_pixels)))


def _decode(source: Path | bytes, min_side: int | None, max_pixels: int, hold: Callable[[int], None]) -> Image.Image:
    # Our limit is checked below; Pillow's own would come first, and differs.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise OversizedImage(f"{width} x {height} pixels are more than the {max_pixels} allowed")
            image.decodermaxblock = _READ_AT_ONCE_BYTES
            if min_side is not None:
                image.draft(None, (_DRAFT_OVERSAMPLING * min_side, _DRAFT_OVERSAMPLING * min_side))
            hold(image.width * image.height)
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except UnidentifiedImageError:
        raise UnreadableImage("not a JPEG, PNG, WebP, GIF, BMP or TIFF image") from None
    except FileNotFoundError:
        raise UnreadableImage("the file is not there") from None
    except MemoryError:
        raise UnreadableImage(OUT_OF_MEMORY) from None
    except _DECODER_ERRORS as error:
        raise UnreadableImage(f"it cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DECODER_ERRORS:  # damaged metadata is no reason to refuse a good picture
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _to_eight_bits(image).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        coloured = image.convert("RGBA")
        white = Image.new("RGB", coloured.size, "white")
        white.paste(coloured, mask=coloured)
        return white
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale deep greyscale to 0..255: by the range of its type where the values fit one, else by their own range."""
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        full_range = 1.0 if high <= 1 else 255.0
    else:
        full_range = 65535.0 if image.mode.startswith("I;") or high > 255 else 255.0
    if low < 0 or high > full_range:
        values -= low
        full_range = (high - low) or 1.0
    values *= 255.0 / full_range
    values += 0.5
    return Image.fromarray(values.astype(np.uint8))


def to_pixels(source: Path | bytes, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image, resize its shorter side and cut out the centre, in one pass over the pixels needed.

    The same as torchvision's preset but for rounding (and for what decoding a large JPEG at a fraction of its size
    changes, less than half a step of 255 in the mean).

    Returns:
        Pixels (crop_size, crop_size, 3): height, width, RGB.

    Raises:
        UnreadableImage: see ``open_image``.
    """
    with open_image(source, min_side=spec.resize_size, max_pixels=max_pixels) as image:
        return _central_pixels(image, spec)


def to_views(
    source: Path | bytes, spec: InputSpec, *, max_pixels: int, limit: PixelLimit = _open_pixels
) -> NDArray[np.uint8]:
    """Decode an image and return all that the network looks at: its centre, then the whole where the spec says so.

    Returns:
        Pixels (n_views, crop_size, crop_size, 3): view, height, width, RGB.

    Raises:
        UnreadableImage: see ``open_image``.
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


# --- training ----------------------------------------------------------------------------------------------

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


# --- tensors -----------------------------------------------------------------------------------------------


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
