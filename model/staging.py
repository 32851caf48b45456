"""The way of images to the device that computes: stacked where a GPU can fetch them, and copied beside its work."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")


class Staging:
    """Brings images to one device; may be used by several threads, of which none waits for what the device computes.

    To a GPU they go as bytes, a quarter of what a network sees. Keep it for as long as the device is used: memory that
    copies have left is used again by the same staging only.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def stacked(self, images: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> torch.Tensor:
        """Return images of a shape, maybe none, as uint8 (n_images, *shape), not on the device yet."""
        pixels = torch.empty((len(images), *shape), dtype=torch.uint8, pin_memory=self._stream is not None)
        for place, image in zip(pixels.numpy(), images, strict=True):
            place[...] = image
        return pixels

    def copied(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return tensors on the device if there is room, and else as they are.

        Whoever computes with them has to ``claim`` them.
        """
        if self._stream is None:
            return tensors
        try:
            # This thread's own device is the first one: to leave a stream of another would take memory there.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                copies = tuple(each.to(self._device, non_blocking=True) for each in tensors)
        except torch.OutOfMemoryError:
            return tensors  # the network needs all the memory just now; when it is their turn, there is room
        self._stream.synchronize()
        return copies


def claim(tensor: torch.Tensor) -> torch.Tensor:
    """Return a staged tensor, its memory safe until the current stream has read it.

    The stream that copied it owns that memory, and would fill it anew as soon as nobody here holds it.
    """
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def one_ahead(items: Iterator[T]) -> Generator[T]:
    """Yield items while a thread waits for the next one, and for no more than that."""
    with ThreadPoolExecutor(1, thread_name_prefix="stage") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
