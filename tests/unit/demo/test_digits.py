"""The demo's pictures are real digits: different, balanced, and the same every time."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from PIL import Image

from backend.demo.digits import CLASS_NAMES, MAX_INK, PICTURE_SIZE, draw_digit, draw_digits


def test_pictures_are_balanced_different_and_reproducible() -> None:
    pictures = draw_digits(40)
    assert Counter(picture.class_name for picture in pictures) == dict.fromkeys(CLASS_NAMES, 4)
    assert len({picture.png for picture in pictures}) == 40
    assert len({picture.file_name for picture in pictures}) == 40
    assert draw_digits(40) == pictures
    assert draw_digits(40, seed=1) != pictures


def test_a_picture_is_dark_ink_on_light_paper_with_soft_edges() -> None:
    ink = np.zeros((8, 8))
    ink[2:6, 3:5] = MAX_INK
    with Image.open(io.BytesIO(draw_digit(ink, np.random.default_rng(0)))) as picture:
        assert picture.size == (PICTURE_SIZE, PICTURE_SIZE)
        grey = np.asarray(picture.convert("L"), dtype=float)
    middle = PICTURE_SIZE // 2
    assert grey[middle, middle] < 80
    assert grey[:5].min() > 220
    assert grey[-5:].min() > 220
    assert ((grey > 100) & (grey < 200)).mean() > 0.005
