"""From image files to features: decoding in threads, ahead of a network that runs in the fastest form it has here."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import nn

from model.backbones import Backbone
from model.blocks import FeatureNetwork
from model.transforms import InputSpec, UnreadableImage, normalise, to_views

_log = structlog.get_logger()

_CPU_BATCH_SIZE = 8  # larger ones fall out of the cache and are slower
_CUDA_BATCH_SIZE = 128
_BATCHES_AHEAD = 3
Decoded = NDArray[np.uint8] | UnreadableImage
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Features of some images.

    ``features`` (n_read, n_features) has a row for each image that could be read, in the order given, float16 and
    finite; ``problems`` maps the index of each other image to the reason.
    """

    features: NDArray[np.float16]
    problems: dict[int, str]


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
    """A backbone made ready to embed on one device: channels-last, and in bfloat16 where that is fast.

    The features of an image are the mean of those of its views.

    Of an image's features bfloat16 changes about one per cent of their spread; weights and digest of the backbone
    stay as they are. ``embed`` may be called from several threads.
    """

    def __init__(self, backbone: Backbone, device: str = "cpu") -> None:
        self.backbone = backbone
        self.device = device
        self.batch_size = (_CPU_BATCH_SIZE if device == "cpu" else _CUDA_BATCH_SIZE) // backbone.input_spec.n_views
        self._bfloat16 = bfloat16_pays(device)
        self._network = _prepared(backbone.network, device, bfloat16=self._bfloat16)

    def embed(
        self,
        sources: Sequence[Path | bytes],
        *,
        max_pixels: int,
        batch_size: int | None = None,
        n_decoders: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Embedded:
        """Compute the features of images; one that cannot be read costs only itself.

        Args:
            sources: Files, or their bytes.
            max_pixels: Most pixels an image may have.
            batch_size: Images in one forward pass; without it what suits the device. On a GPU whose memory is too
                small for it, it is halved, now and for later calls.
            n_decoders: Threads that decode; one per processor without it.
            on_progress: Called after each forward pass with the number of images done and of all images; what it
                raises ends the work.
        """
        size = batch_size or self.batch_size
        decode = partial(_decode, spec=self.backbone.input_spec, max_pixels=max_pixels)
        rows: list[NDArray[np.float16]] = [np.empty((0, self.backbone.n_features), np.float16)]
        problems: dict[int, str] = {}
        batch: list[NDArray[np.uint8]] = []
        with closing(_decode_ahead(sources, decode, n_decoders or os.cpu_count() or 1, _BATCHES_AHEAD * size)) as all_:
            for index, pixels in enumerate(all_):
                if isinstance(pixels, UnreadableImage):
                    problems[index] = str(pixels)
                else:
                    batch.append(pixels)
                if len(batch) < size and index + 1 < len(sources):
                    continue
                if batch:
                    rows.append(self._features(batch))
                    batch = []
                if on_progress is not None:
                    on_progress(index + 1, len(sources))
        return Embedded(features=np.concatenate(rows), problems=problems)

    def _features(self, batch: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
        try:
            return self._forward(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Out of the handler, so that what the failed pass still held is free.
        torch.cuda.empty_cache()
        half = len(batch) // 2
        self.batch_size = min(self.batch_size, half)
        _log.warning("GPU memory is too small for the batch, halving it", batch_size=half)
        return np.concatenate([self._features(batch[:half]), self._features(batch[half:])])

    def _forward(self, batch: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
        """Return the features of images, each given as its views, (n_views, height, width, 3): the mean over views."""
        n_views, *shape = batch[0].shape
        pixels = torch.empty((len(batch) * n_views, *shape), dtype=torch.uint8, pin_memory=self.device == "cuda")
        np.concatenate(batch, out=pixels.numpy())
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self._bfloat16):
            features = self._network(normalise(pixels, self.backbone.input_spec, self.device))
            features = features.float().unflatten(0, (len(batch), n_views)).mean(dim=1)
            features = features.nan_to_num(nan=0.0).clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
            array: NDArray[np.float16] = features.to(torch.float16).cpu().numpy()
        return array


def bfloat16_pays(device: str) -> bool:
    """Tell whether a forward pass in bfloat16 is faster here than one in float32: not where it is emulated."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def _prepared(network: FeatureNetwork, device: str, *, bfloat16: bool) -> FeatureNetwork:
    """Return a copy for inference.

    Under autocast the weights of convolutions and linear layers are cast at every call: here once for all. The
    others stay in float32, where autocast wants them.
    """
    prepared = copy.deepcopy(network).to(device).to(memory_format=torch.channels_last)
    prepared.requires_grad_(False).eval()
    if bfloat16:
        for module in prepared.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    return prepared


def _decode(source: Path | bytes, *, spec: InputSpec, max_pixels: int) -> Decoded:
    try:
        return to_views(source, spec, max_pixels=max_pixels)
    except UnreadableImage as problem:
        return problem


def _decode_ahead(
    sources: Sequence[Path | bytes], decode: Callable[[Path | bytes], Decoded], n_threads: int, n_ahead: int
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
