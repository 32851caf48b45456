"""What a training is given, and what it works with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.backbones import Backbone, layer_groups
from model.batches import Batch, ImageLoader, split_batches
from model.distributed import copy_from_first_rank, rank, shard
from model.execution import Execution
from model.learner import Classifier, Learner
from model.losses import Criterion
from model.maps import StoredMaps
from model.schedule import make_optimizer, warmup_cosine

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train; ``for_labels`` chooses what suits the number of labels.

    ``batch_size`` counts the images of one step over all processes. ``learning_rate`` is that of the last layers,
    the first ones learn ``first_layer_share`` times as fast. ``average_decay`` is the share that the moving
    average of the weights keeps at each step. ``patience`` is the number of epochs without a lower validation
    loss after which training stops. ``max_class_weight`` bounds how much more a rare class may count, and
    ``mixup_alpha`` 0 means no mixup. ``kept_share`` is how much of what training changed in the weights is kept.
    The first ``n_frozen_stages`` stages of the network stay as they are, so what they make of an image, without any
    random change, is computed once.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    first_layer_share: float
    mixup_alpha: float
    average_decay: float
    patience: int
    kept_share: float = 1.0
    n_frozen_stages: int = 0
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    max_gradient_norm: float = 1.0
    max_class_weight: float = 4.0
    head_penalty: float = 1e-3
    seed: int = 0

    @classmethod
    def for_labels(cls, n_labels: int, n_classes: int, *, pretrained: bool = True) -> Self:
        """Choose by the number of labels, and by whether the network has learned anything yet.

        Args:
            n_labels: labelled images to train on.
            n_classes: classes among them.
            pretrained: see ``Backbone.pretrained``; an untrained network needs higher rates and more epochs.
        """
        # mobilenet_v2 on 252 photos of six classes: 1e-4 learned less in 8 epochs, 3e-4 had a higher validation loss
        # and 1e-3 destroyed the features; without mixup it over-fitted within 2 epochs
        batch_size = 16 if n_labels < 1000 else 32 if n_labels < 5000 else 64
        steps_per_epoch = math.ceil(max(1, n_labels) / batch_size)
        epochs = min(12, max(5, round(130 / math.sqrt(max(1, n_labels)))))
        return cls(
            epochs=epochs if pretrained else 4 * epochs,
            batch_size=batch_size,
            learning_rate=2e-4 if pretrained else 1e-3,
            head_learning_rate=1e-3,
            first_layer_share=0.1 if pretrained else 1.0,
            mixup_alpha=0.2 if n_labels > 20 * n_classes else 0.0,
            average_decay=max(0.9, 1 - 1 / (2 * steps_per_epoch)),
            patience=5 if pretrained else 16,
            kept_share=0.5 if pretrained else 1.0,
        )


class Training:
    """What one call of ``fit`` works with; batches taken from it count as progress."""

    def __init__(
        self,
        *,
        config: TrainingConfig,
        learner: Learner,
        criterion: Criterion,
        execution: Execution,
        loader: ImageLoader,
        maps: StoredMaps | None,
        train_rows: NDArray[np.int64],
        validation_rows: NDArray[np.int64],
        pretrained: bool,
        on_progress: OnProgress,
    ) -> None:
        self.config = config
        self.learner = learner
        self.criterion = criterion
        self.execution = execution
        self.loader = loader
        self.train_rows = train_rows
        self.validation_rows = validation_rows
        self.pretrained = pretrained
        self.first_epoch = 0 if pretrained else 1
        self._maps = maps
        self._unmapped = split_batches(np.concatenate([train_rows, validation_rows]), config.batch_size) if maps else []
        self._n_train_batches = len(split_batches(train_rows, config.batch_size))
        self._n_epoch_batches = self._n_train_batches + len(split_batches(validation_rows, config.batch_size))
        self._n_batches = len(self._unmapped) + self._n_epoch_batches * (config.epochs + 1 - self.first_epoch)
        self._n_batches_done = 0
        self._on_progress = on_progress

    def store_maps(self) -> None:
        """Compute what the frozen stages make of the images, if there are such stages and it has not been done."""
        waiting, self._unmapped = self._unmapped, []
        for rows, batch in zip(waiting, self._counted(self.loader.evaluation_batches(waiting)), strict=True):
            images, _ = self.execution.tensors(batch)
            compute = partial(self.execution.forward, self.learner.average.maps, images)
            readable = [row for row in rows.tolist() if row not in self.loader.problems]
            with torch.no_grad():
                parts = self.execution.in_parts(len(batch), compute)
            if self._maps and parts:
                self._maps.append(readable, torch.cat(parts))

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """Yield this rank's part of each batch of an epoch in random order: images with random changes, or maps."""
        order = np.random.default_rng((self.config.seed, epoch)).permutation(self.train_rows)
        if self._maps:
            return self._counted(self._maps.batches(self._parts(order)))
        return self._counted(self.loader.training_batches(self._parts(order), seed=self.config.seed, epoch=epoch))

    def evaluation_batches(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """Yield this rank's part of each batch of ``rows``: images as serving would see them, or maps."""
        if self._maps:
            return self._counted(self._maps.batches(self._parts(rows)))
        return self._counted(self.loader.evaluation_batches(self._parts(rows)))

    def learning_rate_factor(self) -> float:
        """Return the factor on all learning rates for the next step."""
        n_steps = self._n_train_batches * self.config.epochs
        n_warmup_steps = round(self.config.warmup_share * n_steps)
        return warmup_cosine(self.learner.n_steps, n_warmup_steps=n_warmup_steps, n_steps=n_steps)

    def skip_epochs(self, n_epochs: int) -> None:
        """Count epochs as done, without a report."""
        self._n_batches_done = n_epochs * self._n_epoch_batches

    def finish(self) -> None:
        """Report that there is nothing left to do, however early the training stopped."""
        self._report(self._n_batches)

    def _parts(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [shard(batch) for batch in split_batches(rows, self.config.batch_size)]

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._report(self._n_batches_done + 1)

    def _report(self, n_batches_done: int) -> None:
        self._n_batches_done = n_batches_done
        if rank() == 0:
            self._on_progress(n_batches_done, self._n_batches)


def make_learner(backbone: Backbone, class_count: int, config: TrainingConfig, execution: Execution) -> Learner:
    """Make what learns from a copy of the backbone, on the device, the same on all ranks."""
    copied = replace(backbone, network=copy.deepcopy(backbone.network))
    model = Classifier(copied, class_count, n_frozen_stages=config.n_frozen_stages)
    execution.place(model)
    copy_from_first_rank(model)
    optimizer = make_optimizer(
        layer_groups(copied),
        model.head,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        first_layer_share=config.first_layer_share,
        weight_decay=config.weight_decay,
    )
    return Learner(model, optimizer, average_decay=config.average_decay, max_gradient_norm=config.max_gradient_norm)
