"""The random changes are those of torchvision's TrivialAugmentWide, drawn evenly over their whole range."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import TrivialAugmentWide, _apply_op

from model import augmentation

SIDE = 224
N_STRENGTHS = 31
NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
IN_TORCHVISION = TrivialAugmentWide(num_magnitude_bins=N_STRENGTHS)._augmentation_space(N_STRENGTHS)
TRANSLATIONS = ("TranslateX", "TranslateY")
"""A positive number moves the image in the other direction than torchvision's: both are drawn equally often."""


def picture() -> Image.Image:
    """Soft colours with some noise, which use neither the darkest nor the lightest values."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(50, 180, (7, 7, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return Image.fromarray((soft + generator.normal(0, 8, soft.shape)).clip(10, 220).astype(np.uint8))


def test_the_operations_are_torchvisions() -> None:
    assert set(NAMES) == set(IN_TORCHVISION)
    assert len(augmentation._OPERATIONS) == len(NAMES)


@pytest.mark.parametrize("part", [-1.0, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_does_what_its_name_says_up_to_full_strength(name: str, part: float) -> None:
    operation, full_strength = augmentation._OPERATIONS[NAMES.index(name)]
    magnitudes, is_signed = IN_TORCHVISION[name]
    magnitude = float(magnitudes[round(abs(part) * (N_STRENGTHS - 1))]) if magnitudes.ndim else 0.0
    if name in TRANSLATIONS:
        magnitude = -round(magnitude)
    if is_signed and part < 0:
        magnitude = -magnitude
    before = np.asarray(picture()).astype(int)
    ours = np.asarray(operation(picture(), part * full_strength)).astype(int)
    theirs = np.asarray(_apply_op(picture(), name, magnitude, InterpolationMode.BILINEAR, [128, 128, 128]))
    assert np.abs(ours - theirs).mean() < 0.1
    if name != "Identity" and (abs(part) == 1 or not magnitudes.ndim):
        assert np.abs(ours - before).mean() > 1


def test_every_operation_is_drawn_at_every_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, list[float]] = {number: [] for number in range(len(NAMES))}

    def recording(number: int) -> tuple[object, float]:
        def record(image: Image.Image, strength: float) -> Image.Image:
            drawn[number].append(strength)
            return image

        return record, 2.0

    monkeypatch.setattr(augmentation, "_OPERATIONS", tuple(recording(number) for number in drawn))
    generator = np.random.default_rng(0)
    image = picture()
    for _ in range(200 * len(NAMES)):
        augmentation._trivial_augment(image, generator)
    for strengths in drawn.values():
        assert len(strengths) == pytest.approx(200, rel=0.3)
        counts, _ = np.histogram(strengths, bins=4, range=(-2, 2))
        assert counts.sum() == len(strengths)
        assert counts.min() > 0.15 * len(strengths)
