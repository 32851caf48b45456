"""Requests that share a forward pass get their own rows back, whatever images could not be read."""

from __future__ import annotations

import numpy as np

from backend.embedding_server import MicroBatch, join, split
from model.features import Embedded


def embedded(values: list[int], problems: dict[int, str]) -> Embedded:
    return Embedded(features=np.array(values, np.float16).reshape(-1, 1), problems=problems)


def test_a_forward_pass_is_cut_into_its_micro_batches() -> None:
    whole = embedded([0, 2, 3, 5], {1: "truncated", 4: "no image"})
    first, second, third = split(whole, [2, 1, 3])
    assert (first.features[:, 0].tolist(), first.problems) == ([0], {1: "truncated"})
    assert (second.features[:, 0].tolist(), second.problems) == ([2], {})
    assert (third.features[:, 0].tolist(), third.problems) == ([3, 5], {1: "no image"})


def test_micro_batches_are_put_together_again() -> None:
    rows, problems = join([embedded([0], {1: "truncated"}), embedded([2, 3], {})], batch_size=2, n_features=1)
    assert rows[:, 0].tolist() == [0, 2, 3]
    assert problems == {1: "truncated"}


def test_no_images_are_no_rows() -> None:
    rows, problems = join([], batch_size=8, n_features=5)
    assert rows.shape == (0, 5)
    assert problems == {}


def test_urgent_requests_overtake_and_others_keep_their_order() -> None:
    background = [MicroBatch(priority=1, number=number, digest="d", paths=[]) for number in (1, 2)]
    urgent = MicroBatch(priority=0, number=3, digest="d", paths=[])
    assert sorted([background[1], urgent, background[0]]) == [urgent, *background]
