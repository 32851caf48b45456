"""A bounded number works, a bounded number waits, the rest is turned away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from backend.admission import WAITING_PER_WORKING, Admission
from backend.errors import Overloaded

N_WORKING = 2
N_ADMITTED = N_WORKING + WAITING_PER_WORKING * N_WORKING


class Visitors:
    """Threads that come in, and stay until they are told to go."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.may_go = threading.Event()
        self.threads = ThreadPoolExecutor(3 * N_ADMITTED)
        self.lock = threading.Lock()
        self.inside = self.most_inside = 0

    def send(self, n: int) -> list[Future[None]]:
        return [self.threads.submit(self.visit) for _ in range(n)]

    def visit(self) -> None:
        with self.admission:
            with self.lock:
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
            self.may_go.wait(20)
            with self.lock:
                self.inside -= 1


def test_who_finds_no_place_to_wait_is_turned_away_at_once() -> None:
    visitors = Visitors(Admission(N_WORKING, patience_s=20))
    admitted = visitors.send(N_ADMITTED)
    while visitors.inside < N_WORKING or visitors.admission._present._value:
        time.sleep(0.01)

    started_s = time.monotonic()
    for refused in visitors.send(N_ADMITTED):
        with pytest.raises(Overloaded, match="too many requests"):
            refused.result()
    assert time.monotonic() - started_s < 5

    visitors.may_go.set()
    for future in admitted:
        future.result()
    assert visitors.most_inside == N_WORKING
    visitors.threads.shutdown()


def test_who_waited_long_enough_is_turned_away_and_the_place_is_free_again() -> None:
    admission = Admission(1, patience_s=0.05)
    with admission, pytest.raises(Overloaded, match=r"within 0\.05 s"), admission:
        pass
    for _ in range(3):
        with admission:
            pass


def test_a_failure_inside_gives_the_place_back() -> None:
    admission = Admission(1, patience_s=0.05)
    for _ in range(2 * N_ADMITTED):
        with pytest.raises(ZeroDivisionError), admission:
            raise ZeroDivisionError


def test_who_gave_up_waiting_leaves_the_place_to_others() -> None:
    admission = Admission(1, patience_s=0.01)
    with admission:
        for _ in range(WAITING_PER_WORKING + 2):
            with pytest.raises(Overloaded, match="was done within"), admission:
                pass
    with admission:
        pass
