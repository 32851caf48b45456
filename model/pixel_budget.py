"""How many pixels may be open at a time, so that many large images take the memory of one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class PixelLimit(Protocol):
    """Lets images be decoded only as far as there is room for their pixels."""

    def hold(self, n_pixels: int, *, at_most: int) -> AbstractContextManager[None]:
        """Wait until no more than ``at_most`` pixels are held with these, or none but these, and hold them."""


class PixelBudget:
    """The ``PixelLimit`` of all threads of a process."""

    def __init__(self) -> None:
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_pixels: int, *, at_most: int) -> Iterator[None]:
        """Wait until no more than ``at_most`` pixels are held with these, or none but these, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + n_pixels <= at_most)
            self._held += n_pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= n_pixels
                self._changed.notify_all()
