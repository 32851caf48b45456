"""How many requests for suggestions a web process takes on: so many at work, so many waiting, and the rest is refused.

A request that works may wait long for an image to be fetched and embedded. Without a bound a hundred of them would hold
every thread, and Label Studio's events, which it sends once and forgets after a second, would go unanswered.
"""

from __future__ import annotations

import threading

from backend.errors import Overloaded

WAITING_PER_WORKING = 3
RESERVED_THREADS = 8
PATIENCE_S = 10.0


def n_threads(n_working: int) -> int:
    """Return how many threads a web process needs: for all it admits, and some that are always free for the rest."""
    return n_working + WAITING_PER_WORKING * n_working + RESERVED_THREADS


class Admission:
    """A door that lets so many in at a time, lets so many wait before it, and turns away who comes then.

    To be inside is to be in its ``with`` block, which every request is in, a few microseconds mostly.
    """

    def __init__(self, n_working: int, *, patience_s: float = PATIENCE_S) -> None:
        self._working = threading.BoundedSemaphore(n_working)
        self._present = threading.BoundedSemaphore(n_working + WAITING_PER_WORKING * n_working)
        self._patience_s = patience_s

    def __enter__(self) -> None:
        """Take a place at work.

        Raises:
            Overloaded: all places to wait are taken, or none at work became free in time.
        """
        if not self._present.acquire(blocking=False):
            raise Overloaded("too many requests for suggestions wait already: ask again in a moment")
        if not self._working.acquire(timeout=self._patience_s):
            self._present.release()
            raise Overloaded(
                f"no request for suggestions was done within {self._patience_s:g} s: ask again in a moment"
            )

    def __exit__(self, *failure: object) -> None:
        """Give it back, whatever happened."""
        self._working.release()
        self._present.release()
