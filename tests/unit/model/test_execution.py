"""Batches on their way to a device, computed in parts where memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from model.batches import ImageLoader, split_batches
from model.execution import Execution, reproducible
from model.transforms import InputSpec, to_pixels

CPU = torch.device("cpu")
SPEC = InputSpec(resize_size=20, crop_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), interpolation="bilinear")
N_SAMPLES = 11


class Memory:
    """A device's memory: computes gradients for at most ``capacity`` images, and says so by failing half-way."""

    def __init__(self, capacity: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.capacity = capacity
        self.images = torch.randn(N_SAMPLES, 6, generator=generator)
        self.targets = torch.randint(3, (N_SAMPLES,), generator=generator)
        self.network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.part_sizes: list[int] = []

    def backward(self, part: slice) -> torch.Tensor:
        images = self.images[part]
        self.part_sizes.append(len(images))
        loss = nn.functional.cross_entropy(self.network(images), self.targets[part], reduction="sum")
        if len(images) > self.capacity:
            # the last layer's gradients are there already when memory runs out in the first
            self.network[2].weight.grad = torch.full_like(self.network[2].weight, 1e6)
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss.backward()
        return loss.detach()

    def gradients(self) -> list[torch.Tensor]:
        return [each.grad.clone() for each in self.network.parameters() if each.grad is not None]

    def run(self, execution: Execution) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.network.zero_grad()
        losses = execution.in_parts(N_SAMPLES, self.backward, restart=self.network.zero_grad)
        return torch.stack(losses).sum(), self.gradients()


def execution(largest_part: int = N_SAMPLES) -> Execution:
    return Execution(CPU, SPEC, largest_part=largest_part)


@pytest.mark.parametrize(
    ("capacity", "sizes"),
    [
        (11, [11]),
        (10, [11, 5, 5, 1]),
        (4, [11, 5, 2, 2, 2, 2, 2, 1]),
        (1, [11, 5, 2, *[1] * 11]),
    ],
)
def test_gradients_of_a_batch_that_did_not_fit_are_those_of_the_whole(capacity: int, sizes: list[int]) -> None:
    expected_loss, expected = Memory(N_SAMPLES).run(execution())
    memory, short = Memory(capacity), execution()
    loss, gradients = memory.run(short)
    assert memory.part_sizes == sizes
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected)
    memory.part_sizes.clear()
    torch.testing.assert_close(memory.run(short)[1], expected)
    assert max(memory.part_sizes) <= capacity, "later batches start with parts that fit"


def test_failure_in_a_later_part_starts_the_whole_batch_again() -> None:
    """Memory that others take away meanwhile: the first part had fitted and left its gradients."""
    expected = Memory(N_SAMPLES).run(execution())[1]
    memory, calls = Memory(N_SAMPLES), []

    def backward(part: slice) -> torch.Tensor:
        calls.append(part)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return memory.backward(part)

    execution(4).in_parts(N_SAMPLES, backward, restart=memory.network.zero_grad)
    torch.testing.assert_close(memory.gradients(), expected)
    assert memory.part_sizes == [4, 2, 2, 2, 2, 2, 1]


def test_not_even_one_image_fits() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Memory(0).run(execution())


def test_a_gpu_computes_reproducibly_only_while_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with reproducible(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
    with reproducible(torch.device("cuda")):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_batches_hold_the_readable_images_in_order_however_many_threads_decode(tmp_path: Path) -> None:
    sources = []
    for row in range(9):
        pixels = np.random.default_rng(row).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        sources.append(tmp_path / f"{row}.png")
        Image.fromarray(pixels).save(sources[-1])
    sources[4].write_bytes(b"not an image")
    targets = torch.eye(9)
    for n_threads in (1, 32):
        with ImageLoader(sources, targets, SPEC, max_pixels=1000, n_threads=n_threads, device=CPU) as loader:
            batches = list(loader.evaluation_batches(split_batches(np.arange(9), 2)))
        assert [len(batch) for batch in batches] == [2, 2, 1, 3]
        assert list(loader.problems) == [4]
        assert torch.cat([batch.targets for batch in batches]).argmax(dim=1).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
        expected = np.stack([to_pixels(sources[row], SPEC, max_pixels=1000) for row in (5, 6, 7, 8)])
        np.testing.assert_array_equal(torch.cat([batch.inputs for batch in batches])[4:].numpy(), expected)
        images, _ = execution().tensors(batches[0])
        assert images.shape == (2, 3, 16, 16)
        assert images.is_contiguous(memory_format=torch.channels_last)
