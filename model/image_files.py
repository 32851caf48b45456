"""Image files and what they hold: decoded upright and in RGB, or refused with the reason.

Works without torch, and in any number of threads at once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.pixel_budget import PixelBudget, PixelLimit

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

open_pixels = PixelBudget()
"""What all threads of this process share where they are given no limit."""


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


class OversizedImage(UnreadableImage):
    """An image with more pixels than allowed."""


@contextmanager
def open_image(
    source: Path | bytes, *, min_side: int | None, max_pixels: int, limit: PixelLimit = open_pixels
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
