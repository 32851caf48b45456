"""Staging: batches on their way to a device, one ahead of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from model.staging import Staging, claim, one_ahead

TIMEOUT_S = 30


def test_images_are_stacked_in_order() -> None:
    staging = Staging(torch.device("cpu"))
    images = [np.full((2, 3), number, np.uint8) for number in range(4)]
    assert np.array_equal(staging.stacked(images, (2, 3)), np.stack(images))
    assert staging.stacked([], (2, 3)).shape == (0, 2, 3)


def test_a_processor_takes_tensors_where_they_lie() -> None:
    tensors = torch.zeros(2), torch.ones(3)
    copies = Staging(torch.device("cpu")).copied(*tensors)
    assert [claim(each) is tensor for each, tensor in zip(copies, tensors, strict=True)] == [True, True]


class OnHost:
    """Stands for a tensor that goes to a GPU, or finds no room there."""

    def __init__(self, *, fits: bool) -> None:
        self.fits = fits

    def to(self, device: torch.device, *, non_blocking: bool) -> str:
        assert non_blocking
        if not self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"on {device}"


class Stream:
    n_waits = 0

    def synchronize(self) -> None:
        self.n_waits += 1


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_gets_all_of_a_batch_or_nothing(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr("torch.cuda.Stream", lambda _: stream)
    monkeypatch.setattr("torch.cuda.stream", lambda _: nullcontext())
    monkeypatch.setattr("torch.cuda.device", lambda _: nullcontext())
    tensors = OnHost(fits=True), OnHost(fits=fits)
    copies = Staging(torch.device("cuda")).copied(*tensors)  # type: ignore[arg-type]
    assert copies == (("on cuda", "on cuda") if fits else tensors)
    assert stream.n_waits == (1 if fits else 0)


def test_one_item_is_made_ahead_and_no_more() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = one_ahead(items())
    assert not made[0].is_set()
    assert next(ahead) == 0
    assert made[1].wait(TIMEOUT_S)
    assert not made[2].is_set()
    assert list(ahead) == [1, 2, 3]
    assert list(one_ahead(iter([]))) == []


def test_an_error_comes_when_its_turn_does() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise InterruptedError("in the thread")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(InterruptedError, match="in the thread"):
        next(ahead)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.enumerate()
    ahead = one_ahead(iter(range(9)))
    assert next(ahead) == 0
    assert threading.enumerate() != before
    ahead.close()
    assert threading.enumerate() == before
