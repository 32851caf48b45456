"""Answers that are given again, as they went out, until the state changes."""

from __future__ import annotations

import threading

from backend.ports import Clock, Database

MAX_KEPT_BYTES = 8 * 2**20


class KeptAnswers:
    """Bodies of requests and of their answers, where the state alone decides what the answer is.

    One look at the state's revision then stands for reading it, and nothing is parsed, looked up or encoded. An
    answer is kept for the rest of the minute at most, because the state tells to the minute when somebody asked last.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._moment = ""
        self._answers: dict[bytes, bytes] = {}
        self._n_bytes = 0

    def now(self) -> str:
        """Return what an answer belongs to: the state as it is, and the minute. Ask before the state is read."""
        return f"{self._clock.now():%Y-%m-%d %H:%M} {self._database.revision()}"

    def find(self, moment: str, request: bytes) -> bytes | None:
        """Return what was answered to the same request at this moment, if anything."""
        with self._lock:
            return self._answers.get(request) if moment == self._moment else None

    def keep(self, moment: str, request: bytes, answer: bytes) -> None:
        """Remember an answer; when they become too many, the others are forgotten."""
        n_bytes = len(request) + len(answer)
        if n_bytes > MAX_KEPT_BYTES:
            return
        with self._lock:
            if moment != self._moment or self._n_bytes + n_bytes > MAX_KEPT_BYTES:
                self._moment, self._answers, self._n_bytes = moment, {}, 0
            self._answers[request] = answer
            self._n_bytes += n_bytes
