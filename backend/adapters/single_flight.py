"""One piece of work for all who ask for the same thing at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

from backend.errors import TandemError

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Work by key: while one thread is at it, others wait for its result or its ``TandemError``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Result]] = {}

    def do(self, key: str, work: Callable[[], Result], timeout_s: float) -> Result:
        """Return the result of the work, which this call does unless another thread is at it.

        Raises:
            TimeoutError: the other thread took longer than ``timeout_s``, or was broken off.
            TandemError: what the work raised.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                own = self._flights[key] = Future()
        if flight is not None:
            try:
                return flight.result(timeout_s)
            except CancelledError:
                raise TimeoutError from None
        try:
            result = work()
            own.set_result(result)
            return result
        except TandemError as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]
            own.cancel()
