"""How many requests for suggestions a web process takes on: so many at work, so many waiting, and the rest is refused.

A request that works may wait long for an image to be fetched and embedded. Without a bound a hundred of them would hold
every thread, and Label Studio's events, which it sends once and forgets after a second, would go unanswered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import Overloaded

WAITING_PER_WORKING = 3
RESERVED_THREADS = 8
PATIENCE_S = 10.0


def n_threads(n_working: int) -> int:
    """Return how many threads a web process needs: for all it admits, and some that are always free for the rest."""
    return n_working + WAITING_PER_WORKING * n_working + RESERVED_THREADS


class Admission:
    """A door that lets so many in at a time, lets so many wait before it, and turns away who comes then."""

    def __init__(self, n_working: int, *, patience_s: float = PATIENCE_S) -> None:
        self._working = threading.BoundedSemaphore(n_working)
        self._present = threading.BoundedSemaphore(n_working + WAITING_PER_WORKING * n_working)
        self._patience_s = patience_s

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Hold a place at work.

        Raises:
            Overloaded: all places to wait are taken, or none at work became free in time.
        """
        if not self._present.acquire(blocking=False):
            raise Overloaded("too many requests for suggestions wait already: ask again in a moment")
        try:
            if not self._working.acquire(timeout=self._patience_s):
                raise Overloaded(
                    f"no request for suggestions was done within {self._patience_s:g} s: ask again in a moment"
                )
            try:
                yield
            finally:
                self._working.release()
        finally:
            self._present.release()
