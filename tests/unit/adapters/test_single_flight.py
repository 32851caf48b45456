"""One piece of work for all who ask at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.adapters.single_flight import SingleFlight
from backend.errors import ImageNotFound


def run_together(flights: SingleFlight, work, n_threads: int, timeout_s: float = 10):
    """Start one piece of work and join it from other threads; return the outcome of each."""
    started, release, calls = threading.Event(), threading.Event(), []

    def held():
        calls.append(1)
        started.set()
        assert release.wait(10)
        return work()

    with ThreadPoolExecutor(n_threads) as pool:
        futures = [pool.submit(flights.do, "key", held, timeout_s)]
        assert started.wait(10)
        futures += [pool.submit(flights.do, "key", held, timeout_s) for _ in range(n_threads - 1)]
        time.sleep(0.2)
        release.set()
    return futures, len(calls)


def test_all_get_the_one_result():
    futures, n_calls = run_together(SingleFlight(), lambda: "image", 4)
    assert [future.result() for future in futures] == ["image"] * 4
    assert n_calls == 1


def test_all_get_the_one_error_and_the_next_tries_anew():
    def fail():
        raise ImageNotFound("gone")

    flights = SingleFlight()
    futures, n_calls = run_together(flights, fail, 3)
    assert [str(future.exception()) for future in futures] == ["gone"] * 3
    assert n_calls == 1
    assert flights.do("key", lambda: "image", 1) == "image"


def test_a_defect_ends_the_wait_of_the_others():
    futures, _ = run_together(SingleFlight(), lambda: 1 / 0, 3)
    assert sorted(type(future.exception()).__name__ for future in futures) == [
        "TimeoutError",
        "TimeoutError",
        "ZeroDivisionError",
    ]


def test_nobody_waits_longer_than_asked():
    flights, release = SingleFlight(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(flights.do, "key", lambda: release.wait(10), 10)
        while not flights._flights:
            time.sleep(0.01)
        with pytest.raises(TimeoutError):
            flights.do("key", lambda: None, 0.05)
        assert flights.do("another key", lambda: "image", 0.05) == "image"
        release.set()
        assert first.result()
