"""How a network is fine-tuned where images have folds: which of them teach, which end the training, which judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.backbones import Backbone, between
from model.finetuning import FineTuned
from model.folds import EARLY_STOPPING_FOLD
from model.launch import fit_on_all_devices
from model.training import OnProgress, TrainingConfig

MAX_IMAGES_ON_MAPS = 500
"""To learn from: of so many, but not of more, the last block alone was measured to learn as much (docs/recipe.md)."""


def finetune(
    backbone: Backbone,
    sources: Sequence[Path],
    targets: NDArray[np.int64] | NDArray[np.bool_],
    folds: NDArray[np.intp],
    *,
    class_count: int,
    device: str,
    max_pixels: int,
    n_threads: int | None,
    on_progress: OnProgress,
    seed: int = 0,
    resume_folder: Path | None = None,
) -> tuple[TrainingConfig, FineTuned]:
    """Fine-tune as suits the number of labels and the device, on all GPUs there are; see ``model.finetuning.fit``.

    On a processor, where it takes minutes, few labels teach only the last block of a pretrained network, on stored
    maps: that is the better bargain there.

    Pretrained weights and fine-tuned ones know different things, and a network half-way between them knows of both,
    for the price of one (Wortsman et al.: "Robust fine-tuning of zero-shot models", 2022).

    Args:
        backbone: where to start from; it is not changed.
        sources: image files (n_images).
        targets: class index (n_images,), or which classes an image has (n_images, n_classes).
        folds: of the images (n_images,).
        class_count: number of classes.
        device: ``cpu`` or ``cuda``.
        max_pixels: larger images are not read.
        n_threads: CPU threads to use; ``None`` for all.
        on_progress: called with batches done and in all; what it raises ends the training.
        seed: decides what is random.
        resume_folder: where the state is kept after every epoch.

    Returns:
        How it was trained, and the result.

    Raises:
        TrainingDiverged: before any epoch of the network had a finite loss.
        ValueError: no image to learn from.
    """
    train, validation = folds > EARLY_STOPPING_FOLD, folds == EARLY_STOPPING_FOLD
    config = TrainingConfig.for_labels(int(train.sum()), class_count, pretrained=backbone.pretrained)
    config = replace(config, seed=seed)
    if device == "cpu" and backbone.pretrained and train.sum() <= MAX_IMAGES_ON_MAPS:
        config = replace(config, n_frozen_stages=backbone.network.n_stages_before_last_block)
    tuned = fit_on_all_devices(
        backbone,
        sources,
        targets,
        class_count=class_count,
        multiple=targets.ndim == 2,
        train=train,
        validation=validation,
        device=device,
        config=config,
        max_pixels=max_pixels,
        n_threads=n_threads,
        on_progress=on_progress,
        resume_folder=resume_folder,
    )
    return config, replace(tuned, backbone=between(backbone, tuned.backbone, config.kept_share))
