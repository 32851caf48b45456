"""The peers that train a network, each as its source has it, on the same images and weights as ours.

What all share, and where it is kinder to them than their source: images are decoded once and kept, predictions are
those of the network in eval mode, and with several labels per image they learn with binary cross-entropy and a
class counts as predicted from 0.5 on. They may compute in bfloat16, which makes them faster. No peer has a
validation part: all labelled images are learned from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from backend.promotion import targets_of
from benchmarks.image_sets import Split
from benchmarks.learning_runs import Outcome, Stopwatch
from benchmarks.networks import SQUEEZE, TO_TENSOR, Pretrained, Transform, accelerate, outputs, read_rgb, stack
from model.evaluation import evaluate

Predict = Callable[[Sequence[Path]], NDArray[np.float32]]
"""From image files to probabilities, (n, n_classes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a peer is given, and whether its network computes in bfloat16 instead of float32."""

    split: Split
    pretrained: Pretrained
    seed: int
    device: str
    bfloat16: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.split.train.schema.class_names

    @property
    def multiple(self) -> bool:
        """Whether an image may have several classes."""
        return self.split.train.schema.multiple


Peer = Callable[[Lesson], Predict]


def run_peer(peer: Peer, lesson: Lesson) -> Outcome:
    """Train a peer and measure it."""
    test = lesson.split.test
    torch.manual_seed(lesson.seed)
    stopwatch = Stopwatch()
    predict = peer(lesson)
    cost = stopwatch.read()
    report = evaluate(predict(test.paths), targets_of(test.labelled, test.schema), multiple=lesson.multiple)
    return Outcome.of(report, cost, note="bfloat16" if lesson.bfloat16 else "")


def official_loop(lesson: Lesson) -> Predict:
    """Train as Label Studio's former example ``pytorch_transfer_learning`` did at every annotation event.

    From label_studio_ml/examples/pytorch_transfer_learning of HumanSignal/label-studio-ml-backend: the pretrained
    network with a new last layer, all of it trained, batches of 32, 10 epochs, SGD 0.001 with momentum 0.9, a tenth
    of that from the eighth epoch on; shorter side to 224 and the centre, no augmentation. Since all labels are
    learned from anew at each event, the seconds are those of one event.
    """
    trunk, n_features = lesson.pretrained.trunk()
    network = _on_device(nn.Sequential(trunk, nn.Linear(n_features, len(lesson.class_names))), lesson)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    transform = v2.Compose([v2.Resize(224), v2.CenterCrop(224), TO_TENSOR])
    loader = _Loader(lesson, transform, batch_size=32)
    for _ in range(10):
        network.train()
        _train_one_epoch(network, loader, optimizer)
        scheduler.step()
    return _predictor(network, transform, lesson)


KERAS_BATCH_SIZE = 16
KERAS_EPOCHS = 10
KERAS_MIN_STEPS = 50


def keras_recipe(lesson: Lesson, *, frozen: bool) -> Predict:
    """Train by the recipe of the Keras tutorials, frozen or not.

    The head, pooled features, Dense(1024, ReLU) and softmax, is that of "Fine-tune InceptionV3 on a new set of
    classes" (keras.io, Keras Applications); shear 0.2 (degrees), zoom 0.2, horizontal flip and batches of 16 are
    those of "Building powerful image classification models using very little data" (Keras blog, 2016), images
    squeezed to 224 x 224 as its generator does; Adam 1e-4 and 10 epochs those of TensorFlow's "Transfer learning and
    fine-tuning". With so few images 10 epochs are a handful of steps, so there are more epochs until there were 50
    steps. A frozen network stays in inference mode (Keras: ``trainable = False``); one that is not frozen is
    trained as a whole from the start, BatchNorm with torch's momentum (Keras' 0.99 would not get anywhere).
    """
    trunk, n_features = lesson.pretrained.trunk()
    dense = [nn.Linear(n_features, 1024), nn.ReLU(), nn.Linear(1024, len(lesson.class_names))]
    for layer in (dense[0], dense[2]):
        nn.init.xavier_uniform_(layer.weight)  # Keras' glorot_uniform
        nn.init.zeros_(layer.bias)
    network = _on_device(nn.Sequential(trunk, *dense), lesson)
    trunk.requires_grad_(not frozen)
    optimizer = torch.optim.Adam([each for each in network.parameters() if each.requires_grad], lr=1e-4, eps=1e-7)
    augmentation = [SQUEEZE, v2.RandomAffine(degrees=0, scale=(0.8, 1.2), shear=0.2), v2.RandomHorizontalFlip()]
    loader = _Loader(lesson, v2.Compose([*augmentation, TO_TENSOR]), batch_size=KERAS_BATCH_SIZE)
    for _ in range(max(KERAS_EPOCHS, math.ceil(KERAS_MIN_STEPS / loader.n_batches))):
        network.train()
        trunk.train(not frozen)
        _train_one_epoch(network, loader, optimizer)
    return _predictor(network, v2.Compose([SQUEEZE, TO_TENSOR]), lesson)


def _on_device(network: nn.Module, lesson: Lesson) -> nn.Module:
    if lesson.bfloat16:
        accelerate(network, lesson.device)
    return network.to(lesson.device)


class _Loader:
    """The labelled images of a lesson in batches, in a new random order each time."""

    def __init__(self, lesson: Lesson, transform: Transform, *, batch_size: int) -> None:
        train = lesson.split.train
        self._images: list[Image.Image] = [read_rgb(path) for path in train.paths]
        targets = torch.from_numpy(targets_of(train.labelled, train.schema))
        self._targets = targets.float() if lesson.multiple else targets
        self._transform = transform
        self._device = lesson.device
        self._batch_size = batch_size
        self.n_batches = math.ceil(len(self._images) / batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(self._images)).split(self._batch_size):
            images = [self._images[row] for row in rows.tolist()]
            yield stack(images, self._transform, self._device), self._targets[rows].to(self._device)


def _train_one_epoch(network: nn.Module, loader: _Loader, optimizer: torch.optim.Optimizer) -> None:
    for images, targets in loader:
        optimizer.zero_grad()
        logits = network(images)
        loss = (nn.functional.cross_entropy if targets.ndim == 1 else nn.functional.binary_cross_entropy_with_logits)(
            logits, targets
        )
        loss.backward()
        optimizer.step()


def _predictor(network: nn.Module, transform: Transform, lesson: Lesson) -> Predict:
    last = nn.Sigmoid() if lesson.multiple else nn.Softmax(dim=1)
    return partial(outputs, nn.Sequential(network, last), transform=transform, device=lesson.device)
