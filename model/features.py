"""From image files to features: decoding in threads, ahead of a network in the fastest runtime there is here.

While a GPU computes a batch, a thread stacks the next one and copies it there. A processor would gain nothing by that:
to stack takes it a very small part of the time that the network takes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from model.backbones import Backbone
from model.image_files import UnreadableImage
from model.reports import EmbeddingSettings
from model.runtimes import choose_runtime
from model.staging import Staging, claim, one_ahead
from model.transforms import InputSpec, to_views

_log = structlog.get_logger()

_CPU_BATCH_SIZE = 8  # larger ones fall out of the cache and are slower
_CUDA_BATCH_SIZE = 128
_BATCHES_AHEAD = 3
Decoded = NDArray[np.uint8] | UnreadableImage
Source = TypeVar("Source", bound=Path | bytes)
Source_contra = TypeVar("Source_contra", bound=Path | bytes, contravariant=True)
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class Views(Protocol[Source_contra]):
    """What decodes: ``model.transforms.to_views``, or something that does the same."""

    def __call__(self, source: Source_contra, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
        """Return pixels (n_views, crop_size, crop_size, 3), or raise ``UnreadableImage``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Features of some images.

    ``features`` (n_read, n_features) has a row for each image that could be read, in the order given, float16 and
    finite; ``problems`` maps the index of each other image to the reason.
    """

    features: NDArray[np.float16]
    problems: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """The readable ones of some images, maybe none, staged for the device.

    ``pixels`` uint8 (n_readable, n_views, height, width, 3); ``problems`` as in ``Embedded``; ``n_done`` is the number
    of images up to the end of this batch.
    """

    pixels: torch.Tensor
    problems: dict[int, str]
    n_done: int


def choose_device(wish: str) -> str:
    """Return ``cpu`` or ``cuda`` for a wish of ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: the wish is ``cuda`` and there is no usable CUDA device, or it is none of the three.
    """
    if wish not in ("auto", "cpu", "cuda"):
        raise ValueError(f"DEVICE={wish!r} is neither auto, cpu nor cuda")
    available = torch.cuda.is_available()
    if wish == "cuda" and not available:
        raise ValueError("DEVICE=cuda, but torch sees no CUDA device here: set DEVICE=auto, or check the driver")
    return "cuda" if available and wish != "cpu" else "cpu"


class Engine:
    """A backbone made ready to embed on one device, ``cpu`` or ``cuda``; ``embed`` may be called from several threads.

    The features of an image are the mean of those of its views. The runtime and its precision change them by a
    few per cent of their spread (``model.runtimes``); weights and digest of the backbone stay as they are.
    """

    def __init__(self, backbone: Backbone, device: str = "cpu") -> None:
        self.backbone = backbone
        self.device = device
        self.batch_size = (_CPU_BATCH_SIZE if device == "cpu" else _CUDA_BATCH_SIZE) // backbone.input_spec.n_views
        self.runtime = choose_runtime(backbone, device)
        self._staging = Staging(torch.device(device))

    @property
    def settings(self) -> EmbeddingSettings:
        """How features come about here."""
        return EmbeddingSettings(
            backbone=self.backbone.name,
            image_views=self.backbone.input_spec.n_views,
            device=self.device,
            runtime=self.runtime.name,
        )

    def embed(
        self,
        sources: Sequence[Source],
        *,
        max_pixels: int,
        views: Views[Source] = to_views,
        batch_size: int | None = None,
        n_decoders: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Embedded:
        """Compute the features of images; one that cannot be read costs only itself.

        Args:
            sources: Files, or their bytes.
            max_pixels: Most pixels an image may have.
            views: What decodes; in this process without it.
            batch_size: Images in one forward pass; without it what suits the device. On a GPU whose memory is too
                small for it, it is halved, now and for later calls.
            n_decoders: Threads that decode; one per processor without it.
            on_progress: Called after each forward pass with the number of images done and of all images; what it
                raises ends the work.
        """
        size = batch_size or self.batch_size
        decode = partial(_decode, views=views, spec=self.backbone.input_spec, max_pixels=max_pixels)
        rows: list[NDArray[np.float16]] = [np.empty((0, self.backbone.n_features), np.float16)]
        problems: dict[int, str] = {}
        with ExitStack() as running:
            n_threads = n_decoders or os.cpu_count() or 1
            decoded = running.enter_context(closing(_decode_ahead(sources, decode, n_threads, _BATCHES_AHEAD * size)))
            batches = self._batches(decoded, size, len(sources))
            if self.device == "cuda":
                batches = running.enter_context(closing(one_ahead(batches)))
            for batch in batches:
                problems |= batch.problems
                if len(batch.pixels):
                    rows.append(self._features(batch.pixels))
                if on_progress is not None:
                    on_progress(batch.n_done, len(sources))
        return Embedded(features=np.concatenate(rows), problems=problems)

    def _batches(self, decoded: Iterable[Decoded], size: int, n_sources: int) -> Generator[_Batch]:
        spec = self.backbone.input_spec
        images: list[NDArray[np.uint8]] = []
        problems: dict[int, str] = {}
        for index, result in enumerate(decoded):
            if isinstance(result, UnreadableImage):
                problems[index] = str(result)
            else:
                images.append(result)
            if len(images) == size or index + 1 == n_sources:
                stacked = self._staging.stacked(images, (spec.n_views, spec.crop_size, spec.crop_size, 3))
                (pixels,) = self._staging.copied(stacked)
                yield _Batch(pixels=pixels, problems=problems, n_done=index + 1)
                images, problems = [], {}

    def _features(self, pixels: torch.Tensor) -> NDArray[np.float16]:
        try:
            return self._forward(pixels)
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
        # Out of the handler, so that what the failed pass still held is free.
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        self.batch_size = min(self.batch_size, half)
        _log.warning("GPU memory is too small for the batch, halving it", batch_size=half)
        return np.concatenate([self._features(pixels[:half]), self._features(pixels[half:])])

    def _forward(self, pixels: torch.Tensor) -> NDArray[np.float16]:
        """Return the features of images, (n_images, n_views, height, width, 3): the mean over views."""
        n_images, n_views = pixels.shape[:2]
        features = self.runtime(claim(pixels).flatten(0, 1)).reshape(n_images, n_views, -1).mean(axis=1)
        finite: NDArray[np.float32] = np.nan_to_num(features, nan=0.0).clip(-_FLOAT16_MAX, _FLOAT16_MAX)
        return finite.astype(np.float16)


def _decode(source: Source, *, views: Views[Source], spec: InputSpec, max_pixels: int) -> Decoded:
    try:
        return views(source, spec, max_pixels=max_pixels)
    except UnreadableImage as problem:
        return problem


def _decode_ahead(
    sources: Sequence[Source], decode: Callable[[Source], Decoded], n_threads: int, n_ahead: int
) -> Generator[Decoded]:
    """Yield what ``decode`` makes of each source, in order, while threads are at work on the next ones."""
    remaining = iter(sources)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="decode") as pool:
        waiting = deque(pool.submit(decode, source) for source in islice(remaining, n_ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(decode, source) for source in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
