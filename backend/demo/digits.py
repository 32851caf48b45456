"""Pictures to label without a download: scikit-learn's handwritten digits, drawn as ink on paper.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998;
the 1797 images of 8 x 8 pixels that come with scikit-learn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURE_SIZE = 224
MARGIN = 8
MAX_INK = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitPicture:
    """A picture of a digit, and the class it truly belongs to, which only the annotator may look at."""

    file_name: str
    class_name: str
    png: bytes = field(repr=False)


def draw_digits(n_pictures: int, seed: int = 0) -> list[DigitPicture]:
    """Return pictures of different handwritten digits, all classes equally often, in random order."""
    # Slow to import, and nobody but the demo needs it.
    from sklearn.datasets import load_digits

    ink, classes = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(classes))
    by_class = [order[classes[order] == digit] for digit in range(len(CLASS_NAMES))]
    chosen = [by_class[index % len(by_class)][index // len(by_class)] for index in range(n_pictures)]
    pictures = [
        DigitPicture(
            file_name=f"digit-{number:04}.png",
            class_name=CLASS_NAMES[int(classes[row])],
            png=draw_digit(ink[row].reshape(8, 8), generator),
        )
        for number, row in enumerate(generator.permutation(np.array(chosen)))
    ]
    return pictures


def draw_digit(ink: NDArray[np.float64], generator: np.random.Generator) -> bytes:
    """Draw one digit as a PNG of PICTURE_SIZE squared pixels, on paper and with ink of slightly random brightness.

    Args:
        ink: (8, 8), 0 for paper to MAX_INK for full ink.
        generator: where the brightness comes from.
    """
    inner = PICTURE_SIZE - 2 * MARGIN
    small = Image.fromarray(np.pad(ink / MAX_INK * 255, 1).astype(np.uint8))
    # Enlarged smoothly, then cut at half ink: strokes with soft edges instead of 8 x 8 tiles.
    smooth = small.resize((inner, inner), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(inner / 50))
    contrast = 1 / (1 + np.exp(-(np.asarray(smooth, dtype=np.float32) / 255 - 0.45) * 16))
    strength = np.zeros((PICTURE_SIZE, PICTURE_SIZE, 1), dtype=np.float32)
    strength[MARGIN : MARGIN + inner, MARGIN : MARGIN + inner, 0] = contrast
    paper = np.array([250, 247, 240], dtype=np.float32) - generator.uniform(0, 12)
    pen = np.array([28, 38, 92], dtype=np.float32) + generator.uniform(-18, 18)
    picture = paper * (1 - strength) + pen * strength
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
