"""Images per second of several ways to do the same, measured in turns on generated images."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from model.backbones import Backbone, load_backbone

MAX_PIXELS = 10_000_000
N_DISTINCT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Medians over the rounds, in images per second; ``share_files`` is of the lower of ``bare`` and ``decoding``."""

    backbone: str
    work: str
    batch_size: int
    bare: float
    decoded: float
    files: float
    decoding: float
    share_decoded: float
    share_files: float


def write_images(folder: Path, n_images: int) -> list[Path]:
    """Return that many paths of photo-like JPEGs: noise at every scale, so that decoding has its usual work."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(min(n_images, N_DISTINCT))]
    for path in paths:
        layers = []
        for side in (4, 16, 64, 240):
            noise = generator.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
            layers.append(np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC), np.float32))
        mixed = np.average(layers, axis=0, weights=(4, 3, 2, 1))
        Image.fromarray(mixed.astype(np.uint8)).save(path, quality=90)
    return [paths[number % len(paths)] for number in range(n_images)]


def whole_backbone(name: str, folder: Path) -> Backbone:
    """Return a backbone with random weights that is treated like a pretrained one: untrained ones are cut short."""
    weights = folder / f"{name}.pt"
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), weights)
    return load_backbone(name, weights)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rate(n_images: int, device: str, work: Callable[[], object]) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return n_images / (time.perf_counter() - started)


def decode_all(decode: Callable[[int], object], n_images: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(decode, range(n_images)):
            pass


def summed_up(backbone: Backbone, work: str, batch_size: int, rounds: Sequence[dict[str, float]]) -> Rates:
    def median(share: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(share, rounds))

    return Rates(
        backbone=backbone.name,
        work=work,
        batch_size=batch_size,
        bare=median(lambda each: each["bare"]),
        decoded=median(lambda each: each["decoded"]),
        files=median(lambda each: each["files"]),
        decoding=median(lambda each: each["decoding"]),
        share_decoded=median(lambda each: each["decoded"] / each["bare"]),
        share_files=median(lambda each: each["files"] / min(each["bare"], each["decoding"])),
    )


def take_turns(
    works: dict[str, Callable[[], object]], n_images: int, device: str, n_rounds: int
) -> list[dict[str, float]]:
    for work in works.values():
        work()
    return [{name: rate(n_images, device, work) for name, work in works.items()} for _ in range(n_rounds)]
