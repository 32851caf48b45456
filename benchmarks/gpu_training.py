"""Training on a device beside its bare network, and the memory it takes and gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.rates import MAX_PIXELS, Rates, decode_all, summed_up, take_turns, whole_backbone
from model.augmentation import training_pixels
from model.backbones import Backbone
from model.batches import Batch, ImageLoader
from model.execution import Execution, reproducible
from model.finetuning import TrainingConfig, train_one_epoch
from model.launch import fit_on_all_devices
from model.losses import Criterion
from model.ranks import OnProgress, run_ranks
from model.training import Training, make_learner
from model.transforms import normalise, to_pixels

N_CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of the device, in MiB: most that a training held, and what was in use before, during and after one in a child."""

    backbone: str
    training_peak: float
    before_child: float
    during_child: float
    after_child: float


class DecodedLoader(ImageLoader):
    """A loader for which all images are decoded already."""

    def training_batches(self, batches: Sequence[NDArray[np.int64]], *, seed: int, epoch: int) -> Iterator[Batch]:
        pixels = training_pixels(self._sources[0], self._spec, max_pixels=MAX_PIXELS, generator_seed=seed + epoch)
        return self._load(batches, lambda _: pixels)


def config_for(batch_size: int) -> TrainingConfig:
    return replace(TrainingConfig.for_labels(10_000, N_CLASSES), batch_size=batch_size, epochs=1)


def make_training(
    backbone: Backbone, sources: Sequence[Path], device: torch.device, config: TrainingConfig, loader: type[ImageLoader]
) -> Training:
    targets = torch.eye(N_CLASSES)[torch.arange(len(sources)) % N_CLASSES]
    execution = Execution(device, backbone.input_spec, largest_part=config.batch_size + 1)
    return Training(
        config=config,
        learner=make_learner(backbone, N_CLASSES, config, execution),
        criterion=Criterion(multiple=False, weights=torch.ones(N_CLASSES)).to(device),
        execution=execution,
        loader=loader(
            sources,
            targets,
            backbone.input_spec,
            max_pixels=MAX_PIXELS,
            n_threads=os.cpu_count() or 1,
            device=device,
        ),
        maps=None,
        train_rows=np.arange(len(sources)),
        validation_rows=np.arange(0),
        pretrained=True,
        on_progress=lambda *_: None,
    )


def measure_training(backbone: Backbone, sources: Sequence[Path], device: str, n_rounds: int, batch_size: int) -> Rates:
    place, spec, config = torch.device(device), backbone.input_spec, config_for(batch_size)
    n_images = len(sources) // batch_size * batch_size
    sources = sources[:n_images]
    execution = Execution(place, spec, largest_part=batch_size)
    learner = make_learner(backbone, N_CLASSES, config, execution)
    model, optimizer = learner.model.eval(), learner.optimizer
    pixels = np.stack([to_pixels(source, spec, max_pixels=MAX_PIXELS) for source in sources[:batch_size]])
    images, targets = normalise(pixels, spec, place), torch.arange(batch_size, device=place) % N_CLASSES

    def bare() -> None:
        for _ in range(n_images // batch_size):
            optimizer.zero_grad()
            logits = execution.forward(model, images, slice(None))
            nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def decode(row: int) -> object:
        return training_pixels(sources[row], spec, max_pixels=MAX_PIXELS, generator_seed=row)

    decoded = make_training(backbone, sources, place, config, DecodedLoader)
    files = make_training(backbone, sources, place, config, ImageLoader)

    def train(training: Training) -> None:
        with reproducible(place):
            train_one_epoch(training, 1)

    with decoded.loader, files.loader:
        works: dict[str, Callable[[], object]] = {
            "bare": bare,
            "decoded": partial(train, decoded),
            "files": partial(train, files),
            "decoding": lambda: decode_all(decode, n_images),
        }
        return summed_up(backbone, "train", batch_size, take_turns(works, n_images, device, n_rounds))


def measure_memory(name: str, sources: Sequence[Path], folder: Path, batch_size: int) -> Memory:
    """Train in a child that is killed when it has said how much memory it held."""

    def in_use() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20

    torch.cuda.empty_cache()
    before, during = in_use(), [0.0]
    work = partial(train_in_child, name, sources[: 4 * batch_size], folder, batch_size)
    peak = run_ranks([work], on_progress=lambda *_: during.append(in_use()))
    return Memory(
        backbone=name,
        training_peak=peak,
        before_child=before,
        during_child=max(during),
        after_child=in_use(),
    )


def train_in_child(name: str, sources: Sequence[Path], folder: Path, batch_size: int, on_progress: OnProgress) -> float:
    rows = np.arange(len(sources))
    fit_on_all_devices(
        whole_backbone(name, folder),
        sources,
        rows % N_CLASSES,
        class_count=N_CLASSES,
        multiple=False,
        train=rows >= 0,
        validation=rows < 0,
        device="cuda:0",
        config=config_for(batch_size),
        max_pixels=MAX_PIXELS,
        n_threads=None,
        on_progress=on_progress,
    )
    return torch.cuda.max_memory_allocated() / 2**20
