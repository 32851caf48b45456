"""Batches of images for training and evaluation, decoded and copied to the device ahead of the network.

Pillow gives up the interpreter lock while it decodes and resizes, so threads are enough; each random change
of an image is seeded by epoch and row, so a run that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.augmentation import training_pixels
from model.image_files import UnreadableImage
from model.staging import Staging
from model.transforms import InputSpec, to_pixels

N_BATCHES_AHEAD = 3
N_IMAGES_AHEAD_PER_THREAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The readable images of a batch, maybe none, on the device if there was room already.

    ``inputs`` are pixels, uint8 (n_samples, height, width, 3), or what the first stages of a network have made of them,
    float16 (n_samples, ...); ``targets`` (n_samples, n_classes).
    """

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def split_batches(rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut rows into batches; a last one of a single row joins the one before: batch-norm cannot train on it."""
    cuts = list(range(batch_size, len(rows), batch_size))
    if cuts and len(rows) - cuts[-1] == 1:
        cuts.pop()
    return np.split(rows, cuts)


class ImageLoader:
    """Decodes images in threads, a few batches ahead; use it in a ``with`` statement.

    Args:
        sources: image files.
        targets: (n_sources, n_classes).
        spec: what the network wants to see.
        max_pixels: most pixels of an image.
        n_threads: threads that decode.
        device: where batches go, to a GPU while it computes.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        targets: torch.Tensor,
        spec: InputSpec,
        *,
        max_pixels: int,
        n_threads: int,
        device: torch.device,
    ) -> None:
        self.problems: dict[int, str] = {}
        """Why the image of a row could not be read; such rows are left out of later batches."""
        self._sources = sources
        self._targets = targets
        self._spec = spec
        self._max_pixels = max_pixels
        self._n_threads = n_threads
        self._staging = Staging(device)
        self._decoders = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
        self._collator = ThreadPoolExecutor(1, thread_name_prefix="collate")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoders.shutdown(cancel_futures=True)
        self._collator.shutdown(cancel_futures=True)

    def training_batches(self, batches: Sequence[NDArray[np.int64]], *, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield batches of rows with the random changes of this epoch."""

        def decode(row: int) -> NDArray[np.uint8]:
            generator_seed = int(np.random.SeedSequence((seed, epoch, row)).generate_state(1)[0])
            return training_pixels(
                self._sources[row], self._spec, max_pixels=self._max_pixels, generator_seed=generator_seed
            )

        return self._load(batches, decode)

    def evaluation_batches(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield batches of rows as serving would see them."""
        return self._load(batches, lambda row: to_pixels(self._sources[row], self._spec, max_pixels=self._max_pixels))

    def _load(
        self, batches: Sequence[NDArray[np.int64]], decode: Callable[[int], NDArray[np.uint8]]
    ) -> Iterator[Batch]:
        waiting = iter(batches)
        n_rows = max((len(rows) for rows in batches), default=0)
        n_ahead = max(N_BATCHES_AHEAD, N_IMAGES_AHEAD_PER_THREAD * self._n_threads // max(1, n_rows))
        ahead: deque[Future[Batch]] = deque(self._submit(rows, decode) for rows in islice(waiting, n_ahead))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(self._submit(rows, decode) for rows in islice(waiting, 1))
            yield batch

    def _submit(self, rows: NDArray[np.int64], decode: Callable[[int], NDArray[np.uint8]]) -> Future[Batch]:
        decoded = {int(row): self._decoders.submit(decode, int(row)) for row in rows if int(row) not in self.problems}
        return self._collator.submit(self._collate, decoded)

    def _collate(self, decoded: dict[int, Future[NDArray[np.uint8]]]) -> Batch:
        readable: dict[int, NDArray[np.uint8]] = {}
        for row, future in decoded.items():
            try:
                readable[row] = future.result()
            except UnreadableImage as problem:
                self.problems[row] = str(problem)
        side = self._spec.crop_size
        pixels = self._staging.stacked(list(readable.values()), (side, side, 3))
        pixels, targets = self._staging.copied(pixels, self._targets[list(readable)])
        return Batch(inputs=pixels, targets=targets)
