"""Fine-tuning: first a linear head on frozen features, then the whole network with it (LP-FT, Kumar et al. 2022).

The head comes first because a random one would distort good features in the first steps. The network then
learns with small, layer-wise learning rates; what counts is an average of its weights, judged after every epoch
on the validation images. The epoch with the lowest validation loss is returned.

Where the first stages are frozen (``TrainingConfig.n_frozen_stages``) all this happens on what they make of each
image, computed once and without random changes: a small part of the work.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from model.backbones import Backbone, with_network
from model.batches import ImageLoader
from model.distributed import average_buffers, copy_from_first_rank, gather, local_device, rank, sum_over_ranks
from model.execution import Execution, reproducible
from model.losses import Criterion, as_rows, class_weights, linear_probe, mixup
from model.maps import StoredMaps
from model.resume import EpochReport, StateFile, TrainingState, best_epoch, fingerprint
from model.schedule import freeze_batch_norm_statistics, set_learning_rates
from model.training import OnProgress, Training, TrainingConfig, make_learner

log = structlog.get_logger()

__all__ = [
    "FineTuned",
    "TrainingConfig",
    "TrainingDiverged",
    "best_epoch",
    "evaluate",
    "fit",
    "fit_head",
    "train_one_epoch",
]


class TrainingDiverged(Exception):
    """The loss became infinite or not a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """The result of ``fit``.

    ``backbone`` has the averaged weights of ``best_epoch``, in eval mode and on the CPU;
    ``head_weight`` (n_classes, n_features of the last block) and ``head_bias`` (n_classes,) give logits on its
    last block. ``seconds`` is the time spent, over all tries of a resumed training. ``problems`` says of each
    row whose image could not be read why.
    """

    backbone: Backbone
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]
    history: tuple[EpochReport, ...]
    best_epoch: int
    seconds: float
    problems: dict[int, str]


def fit(
    backbone: Backbone,
    sources: Sequence[Path],
    targets: NDArray[np.int64] | NDArray[np.bool_],
    *,
    class_count: int,
    multiple: bool,
    train: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    device: str,
    config: TrainingConfig,
    max_pixels: int,
    n_threads: int | None,
    on_progress: OnProgress,
    resume_folder: Path | None = None,
) -> FineTuned:
    """Fine-tune a backbone and a linear head on labelled images.

    In an initialised ``torch.distributed`` group every process calls it with the same arguments, takes its
    share of every batch and returns the same result; with ``device`` ``cuda`` each takes a GPU of its own.

    Args:
        backbone: where to start from; it is not changed.
        sources: image files (n_images).
        targets: class index (n_images,), or with ``multiple`` which classes an image has (n_images, n_classes).
        class_count: number of classes.
        multiple: whether an image has any number of classes.
        train: which images to learn from (n_images,).
        validation: which images decide when to stop and what to return (n_images,); without any, it is the last
            epoch.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        config: how to train.
        max_pixels: larger images are not read.
        n_threads: CPU threads to use, for decoding and for torch in this process; ``None`` for all.
        on_progress: called on rank 0 after every batch with batches done and in all; what it raises ends the
            training.
        resume_folder: where the state is kept after every epoch. A call with the same arguments goes on from it,
            to exactly the same result on the same machine. Delete the folder when the result is safe.

    Raises:
        TrainingDiverged: before any epoch of the network had a finite loss; later the best one so far is returned.
        ValueError: nothing to train on, or arguments that do not fit together.
    """
    started = time.monotonic()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    place = local_device(device)
    if place.index is not None:
        torch.cuda.set_device(place)
    rows = as_rows(targets, class_count, multiple=multiple)
    train_rows, validation_rows = _chosen_rows(len(sources), len(rows), train, validation)
    identity = fingerprint(
        (backbone.digest, config, class_count, multiple),
        [source.name for source in sources],
        (train_rows.tolist(), validation_rows.tolist(), rows.tolist()),
    )
    execution = Execution(place, backbone.input_spec, largest_part=config.batch_size + 1)
    weights = class_weights(rows[train_rows], multiple=multiple, cap=config.max_class_weight)
    with (
        reproducible(place),
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        ImageLoader(
            sources,
            rows,
            backbone.input_spec,
            max_pixels=max_pixels,
            n_threads=torch.get_num_threads(),
            device=place,
        ) as loader,
        StoredMaps(resume_folder, rows) if config.n_frozen_stages else nullcontext() as maps,
    ):
        training = Training(
            config=config,
            learner=make_learner(backbone, class_count, config, execution),
            criterion=Criterion(multiple=multiple, weights=weights, label_smoothing=config.label_smoothing).to(place),
            execution=execution,
            loader=loader,
            maps=maps,
            train_rows=train_rows,
            validation_rows=validation_rows,
            pretrained=backbone.pretrained,
            on_progress=on_progress,
        )
        history, seconds = _run_epochs(training, StateFile(folder=resume_folder, fingerprint=identity), started)
    best = training.learner.best.cpu()
    network = copy.deepcopy(backbone.network)
    network.load_state_dict(best.network.state_dict())
    return FineTuned(
        backbone=with_network(backbone, network),
        head_weight=best.head.weight.numpy(),
        head_bias=best.head.bias.numpy(),
        history=history,
        best_epoch=best_epoch(history),
        seconds=seconds,
        problems=loader.problems,
    )


def fit_head(training: Training) -> float:
    """Fit the head on the frozen network's features of the training images and return its mean loss."""
    execution, network = training.execution, training.learner.average
    features = [torch.empty(0, network.n_last_features)]
    targets = [torch.empty(0, training.criterion.weights.numel())]
    with torch.no_grad():
        for batch in training.evaluation_batches(training.train_rows):
            inputs, _ = execution.tensors(batch)
            parts = execution.in_parts(len(batch), partial(execution.forward, network.features, inputs))
            features += [part.cpu() for part in parts]
            targets.append(batch.targets.cpu())
    all_features = torch.cat(gather(torch.cat(features))).to(execution.device)
    all_targets = torch.cat(gather(torch.cat(targets))).to(execution.device)
    if not len(all_features):
        raise ValueError(_nothing_readable(training))
    weight, bias = linear_probe(all_features, all_targets, training.criterion, penalty=training.config.head_penalty)
    training.learner.set_head(weight, bias)
    copy_from_first_rank(training.learner.model.head)
    copy_from_first_rank(training.learner.average.head)
    return float(training.criterion(all_features @ weight.T + bias, all_targets)) / len(all_features)


def train_one_epoch(training: Training, epoch: int) -> float:
    """Train the whole network on every training image once and return the mean loss.

    Raises:
        TrainingDiverged: the loss is not finite.
        ValueError: none of the images can be read.
    """
    config, learner, execution = training.config, training.learner, training.execution
    torch.manual_seed(config.seed + epoch)
    generator = np.random.default_rng((config.seed, epoch, rank()))
    learner.model.train()
    if training.pretrained:
        freeze_batch_norm_statistics(learner.model)
    totals = torch.zeros(2, device=execution.device)
    for batch in training.training_batches(epoch):
        set_learning_rates(learner.optimizer, training.learning_rate_factor())
        learner.optimizer.zero_grad()
        inputs, targets = mixup(*execution.tensors(batch), alpha=config.mixup_alpha, generator=generator)
        compute = partial(_backward, training, inputs, targets)
        losses = execution.in_parts(len(batch), compute, restart=learner.optimizer.zero_grad)
        batch_totals = sum_over_ranks(sum(losses, torch.zeros_like(totals)))
        learner.step(n_samples=batch_totals[1])
        totals += batch_totals
    loss, n_samples = totals.tolist()
    if not n_samples:
        raise ValueError(_nothing_readable(training))
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the training loss of epoch {epoch} is {loss}: try a lower learning rate")
    if not training.pretrained:
        average_buffers(learner.model)
        average_buffers(learner.average)
    return float(loss / n_samples)


def evaluate(training: Training) -> tuple[float, float] | None:
    """Return the averaged weights' log loss, in nats, and accuracy, 0 to 1, on the validation images.

    Returns:
        ``None`` where there are no validation images that can be read.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    criterion, execution, model = training.criterion, training.execution, training.learner.average
    totals = torch.zeros(3, device=execution.device)
    with torch.no_grad():
        for batch in training.evaluation_batches(training.validation_rows):
            inputs, targets = execution.tensors(batch)
            parts = execution.in_parts(len(batch), partial(execution.forward, model, inputs))
            if parts:
                logits = torch.cat(parts)
                loss, n_correct = criterion.log_loss(logits, targets), criterion.correct(logits, targets)
                totals += torch.stack([loss, n_correct, loss.new_full((), len(logits))])
    summed_loss, n_right, n_samples = sum_over_ranks(totals).tolist()
    if not n_samples:
        return None
    if not math.isfinite(summed_loss):
        raise TrainingDiverged(f"the validation loss is {summed_loss}: try a lower learning rate")
    return summed_loss / n_samples, n_right / n_samples


def _run_epochs(training: Training, state_file: StateFile, started: float) -> tuple[tuple[EpochReport, ...], float]:
    """Train until the last epoch, the end of patience or divergence; return the history and the seconds spent."""
    history: tuple[EpochReport, ...] = ()
    if state := state_file.load():
        history, started = state.history, started - state.seconds
        training.learner.restore(state.tensors, n_steps=state.n_steps)
        training.loader.problems.update(state.problems)
        training.skip_epochs(len(history))
        log.info("training resumed", epochs_done=len(history))
    first = history[-1].epoch + 1 if history else training.first_epoch
    for epoch in range(first, training.config.epochs + 1):
        if history and history[-1].epoch - best_epoch(history) >= training.config.patience:
            break
        try:
            history = (*history, _run_epoch(training, epoch))
        except TrainingDiverged as error:
            if not history or history[-1].phase == "head":
                raise
            log.warning("training diverged, keeping the best epoch", epoch=epoch, reason=str(error))
            break
        if best_epoch(history) == epoch:
            training.learner.keep_as_best()
        for problems in gather(training.loader.problems):
            training.loader.problems.update(problems)
        if rank() == 0:
            log.info("epoch finished", **asdict(history[-1]))
            state_file.save(
                TrainingState(
                    history=history,
                    n_steps=training.learner.n_steps,
                    seconds=time.monotonic() - started,
                    problems=training.loader.problems,
                    tensors=training.learner.tensors(),
                )
            )
    training.finish()
    return history, time.monotonic() - started


def _run_epoch(training: Training, epoch: int) -> EpochReport:
    training.store_maps()
    train_loss = train_one_epoch(training, epoch) if epoch else fit_head(training)
    loss, accuracy = evaluate(training) or (None, None)
    return EpochReport(
        epoch=epoch,
        phase="network" if epoch else "head",
        train_loss=train_loss,
        validation_loss=loss,
        validation_accuracy=accuracy,
    )


def _chosen_rows(
    n_sources: int, n_targets: int, train: NDArray[np.bool_], validation: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = n_sources, n_targets, len(train), len(validation)
    if len(set(lengths)) != 1:
        raise ValueError(f"sources, targets, train and validation have lengths {lengths}: they must be equal")
    if np.any(train & validation):
        raise ValueError(f"{np.sum(train & validation)} images are for training and validation: choose one for each")
    if not np.any(train):
        raise ValueError("no image is chosen for training")
    return np.flatnonzero(train), np.flatnonzero(validation)


def _backward(training: Training, inputs: torch.Tensor, targets: torch.Tensor, part: slice) -> torch.Tensor:
    """Add a part of a batch to the gradients and return its summed loss and its size."""
    logits = training.execution.forward(training.learner.model, inputs, part)
    loss: torch.Tensor = training.criterion(logits, targets[part])
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss.detach(), loss.new_full((), len(logits))])


def _nothing_readable(training: Training) -> str:
    reason = next(iter(training.loader.problems.values()), "unknown")
    return f"none of the {len(training.train_rows)} images to train on can be read; the first: {reason}"
