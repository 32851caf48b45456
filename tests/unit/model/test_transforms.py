"""Decoding and resizing: every kind of file, every kind of damage, and the same pixels as torchvision's preset."""

from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model.augmentation import training_pixels
from model.image_files import OversizedImage, UnreadableImage, open_image
from model.transforms import InputSpec, normalise, to_pixels

SPEC = InputSpec(
    resize_size=256, crop_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
SMALL = InputSpec(
    resize_size=36, crop_size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
MAX_PIXELS = 50_000_000


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured shapes at several scales with soft edges and some noise: what a JPEG of a photo has."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    layers = [(4, 90), (16, 60), (64, 30)]
    if width > 2048:  # room for details that decoding at too small a size would lose
        layers.append((512, 60))
    for divisor, strength in layers:
        coarse = generator.integers(0, 256, (divisor * height // width + 2, divisor + 2, 3)).astype(np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer) / 255 * strength
    noisy = pixels + generator.normal(0, 4, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def read(content: bytes) -> NDArray[np.uint8]:
    with open_image(content, min_side=None, max_pixels=MAX_PIXELS) as image:
        return np.asarray(image)


def decoded_size(content: bytes, min_side: int | None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    with open_image(content, min_side=min_side, max_pixels=max_pixels) as image:
        return image.size


# --- the same as torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "file_format"),
    [
        (640, 480, "JPEG"),
        (481, 643, "JPEG"),
        (1920, 1080, "JPEG"),
        (1300, 2001, "JPEG"),
        (4000, 3000, "JPEG"),
        (200, 150, "JPEG"),
        (300, 900, "PNG"),
    ],
)
def test_pixels_are_those_of_torchvisions_preset(width: int, height: int, file_format: str) -> None:
    from torchvision.models import ResNet18_Weights
    from torchvision.transforms import functional

    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    spec = InputSpec.from_preset(preset)
    assert spec == SPEC
    content = encoded(photo(width, height), file_format, **({"quality": 90} if file_format == "JPEG" else {}))
    with Image.open(BytesIO(content)) as image:
        resized = functional.resize(image.convert("RGB"), preset.resize_size, preset.interpolation, antialias=True)
    expected = np.asarray(functional.center_crop(resized, preset.crop_size)).astype(int)

    pixels = to_pixels(content, spec, max_pixels=MAX_PIXELS)

    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.mean() <= 0.5
    if file_format == "PNG" or min(width, height) < 2 * 2 * 256:  # decoded at full size: only rounding differs
        assert difference.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (36, 36), (37, 35)])
def test_any_size_gives_the_exact_crop(size: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", size, (10, 200, 30)), "PNG")
    pixels = to_pixels(content, SMALL, max_pixels=MAX_PIXELS)
    assert pixels.shape == (32, 32, 3)
    assert (pixels == (10, 200, 30)).all()


def test_a_file_gives_the_same_pixels_as_its_bytes(tmp_path: Path) -> None:
    content = encoded(photo(80, 60), "JPEG")
    (tmp_path / "photo.any").write_bytes(content)
    assert np.array_equal(
        to_pixels(tmp_path / "photo.any", SMALL, max_pixels=MAX_PIXELS),
        to_pixels(content, SMALL, max_pixels=MAX_PIXELS),
    )


def test_a_large_jpeg_is_decoded_small_but_never_below_twice_what_is_needed() -> None:
    content = encoded(photo(1000, 800), "JPEG")
    assert decoded_size(content, 100) == (250, 200)
    assert decoded_size(content, 101) == (500, 400)
    assert decoded_size(content, None) == (1000, 800)


# --- kinds of images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_every_format_and_plain_mode_becomes_rgb(file_format: str, mode: str) -> None:
    if file_format == "JPEG" and mode == "P":
        pytest.skip("JPEG has no palettes")
    content = encoded(Image.new("RGB", (20, 10), "white").convert(mode), file_format)
    pixels = read(content)
    assert pixels.shape == (10, 20, 3)
    assert pixels.min() >= 250


def test_cmyk_keeps_its_colour() -> None:
    pixels = read(encoded(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize(
    "transparent",
    [
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
        Image.new("LA", (8, 8), (0, 0)),
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert("PA"),
    ],
    ids=["RGBA", "LA", "PA"],
)
def test_transparent_parts_become_white(transparent: Image.Image) -> None:
    file_format = "TIFF" if transparent.mode == "PA" else "PNG"
    if transparent.mode == "PA":
        transparent = transparent.convert("RGBA")
    assert (read(encoded(transparent, file_format)) == 255).all()


@pytest.mark.parametrize(("mode", "key", "ink"), [("P", 0, 0), ("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3))])
def test_a_transparent_colour_becomes_white(mode: str, key: object, ink: object) -> None:
    content = encoded(Image.new(mode, (8, 8), ink), "PNG", transparency=key)  # type: ignore[arg-type]
    assert (read(content) == 255).all()


def test_half_transparent_black_on_white_is_grey() -> None:
    pixels = read(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "WEBP", lossless=True))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535], [32768, 257]], np.uint16), [[0, 255], [128, 1]]),
        (np.array([[0, 255], [128, 1]], np.int32), [[0, 255], [128, 1]]),
        (np.array([[0, 65535], [32768, 257]], np.int32), [[0, 255], [128, 1]]),
        (np.array([[-100, 100], [0, 0]], np.int32), [[0, 255], [128, 128]]),
        (np.array([[0.0, 1.0], [0.5, np.nan]], np.float32), [[0, 255], [128, 0]]),
        (np.array([[0.0, 255.0], [128.0, 1.0]], np.float32), [[0, 255], [128, 1]]),
        (np.array([[-1.0, 1.0], [0.0, 0.0]], np.float32), [[0, 255], [128, 128]]),
        (np.full((2, 2), -3.0, np.float32), [[0, 0], [0, 0]]),
    ],
)
def test_deep_greyscale_is_scaled_not_clipped(values: NDArray[np.generic], expected: list[list[int]]) -> None:
    pixels = read(encoded(Image.fromarray(values), "TIFF"))
    assert pixels.shape == (2, 2, 3)
    assert pixels[..., 0].tolist() == expected


def test_sixteen_bit_png() -> None:
    content = encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)), "PNG")
    assert (read(content) == 156).all()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert np.abs(read(content).astype(int) - (255, 0, 0)).max() <= 3, file_format


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(orientation: int, file_format: str) -> None:
    upright = photo(64, 48)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of the transposition that turns it as stored
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if file_format == "JPEG" else {"lossless": True} if file_format == "WEBP" else {}
    pixels = read(encoded(stored, file_format, exif=exif, **options))
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 4


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_unreadable(file_format: str) -> None:
    content = encoded(photo(120, 90), file_format)
    with pytest.raises(UnreadableImage):
        read(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 100])
def test_what_is_no_image_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match="not a JPEG, PNG"):
        read(content)


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "PDF", "EPS", "AVIF"])
def test_other_formats_are_not_even_tried(file_format: str) -> None:
    with pytest.raises(UnreadableImage, match="not a JPEG, PNG"):
        read(encoded(photo(32, 32), file_format))


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="not there"):
        to_pixels(tmp_path / "gone.jpg", SMALL, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_too_many_pixels_are_refused_by_the_files_own_size(file_format: str) -> None:
    content = encoded(Image.new("RGB", (800, 600)), file_format)
    with pytest.raises(OversizedImage, match="800 x 600 pixels are more than the 479999 allowed"):
        decoded_size(content, 8, 479_999)
    assert decoded_size(content, None, 480_000) == (800, 600)


def test_a_bomb_is_refused_without_being_decoded() -> None:
    header = encoded(Image.new("1", (8, 8)), "PNG")
    # width and height of the header chunk, and its checksum
    chunk = b"IHDR" + struct.pack(">II", 100_000, 100_000) + header[24:29]
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    with pytest.raises(OversizedImage, match="100000 x 100000"):
        read(bomb)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_random_damage_never_raises_anything_else(file_format: str) -> None:
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if file_format in ("BMP", "GIF") else {"exif": exif}
    content = encoded(photo(40, 30), file_format, **options)
    for _ in range(150):
        damaged = bytearray(content)
        for position in generator.integers(0, min(len(content), 400), generator.integers(1, 6)):
            damaged[position] = generator.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(UnreadableImage):
                assert to_pixels(bytes(damaged), SMALL, max_pixels=1_000_000).shape == (32, 32, 3)


# --- training and tensors --------------------------------------------------------------------------------------


def test_training_pixels_are_random_but_repeatable() -> None:
    content = encoded(photo(90, 70), "JPEG")
    seen = [training_pixels(content, SMALL, max_pixels=MAX_PIXELS, generator_seed=seed) for seed in range(80)]
    assert {pixels.shape for pixels in seen} == {(32, 32, 3)}
    assert {pixels.dtype for pixels in seen} == {np.dtype(np.uint8)}
    assert len({pixels.tobytes() for pixels in seen}) == len(seen)
    again = training_pixels(content, SMALL, max_pixels=MAX_PIXELS, generator_seed=7)
    assert np.array_equal(again, seen[7])


def test_training_pixels_still_look_like_the_image() -> None:
    content = encoded(Image.new("RGB", (64, 64), (200, 60, 60)), "PNG")
    means = [
        training_pixels(content, SMALL, max_pixels=MAX_PIXELS, generator_seed=seed).mean((0, 1)) for seed in range(60)
    ]
    reddish = [red > green + 20 for red, green, _ in means]
    assert np.mean(reddish) > 0.6


def test_training_pixels_refuse_what_cannot_be_read() -> None:
    with pytest.raises(UnreadableImage):
        training_pixels(b"no image", SMALL, max_pixels=MAX_PIXELS, generator_seed=0)


def test_normalise_is_torchvisions() -> None:
    import torch
    from torchvision.transforms import functional

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    expected = torch.stack([functional.normalize(functional.to_tensor(each), SPEC.mean, SPEC.std) for each in pixels])
    images = normalise(pixels, SPEC)
    assert images.shape == (3, 3, 5, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_normalise_on_a_gpu_is_the_same() -> None:
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    torch.testing.assert_close(normalise(pixels, SPEC, "cuda").cpu(), normalise(pixels, SPEC))


def test_decoding_does_not_need_torch() -> None:
    code = "import sys, model.transforms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
