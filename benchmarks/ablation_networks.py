"""The fine-tuning of `benchmarks/ablation.py`, and the same with one thing changed.

Whatever the competition between versions would decide, the head on the fine-tuned network is what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from backend.domain import VersionKind
from backend.services import folders
from backend.services.folders import Contest
from benchmarks.ablation_heads import Change, replaced
from benchmarks.frozen import DEFAULTS, embedding_through
from benchmarks.image_sets import Split
from benchmarks.learning_runs import Cost, FeatureMemory, Outcome, Stopwatch
from benchmarks.networks import Pretrained
from model import augmentation, batches, finetuning, recipe, training
from model.backbones import load_backbone
from model.finetuning import FineTuned
from model.training import TrainingConfig
from model.transforms import InputSpec, to_pixels


def tune(
    split: Split, pretrained: Pretrained, seed: int, device: str, memory: FeatureMemory, *, changes: Sequence[Change]
) -> Outcome:
    """Fine-tune as Tandem does but for the changes, and measure the head learned on that network."""
    settings = replace(DEFAULTS, backbone=pretrained.name, weights=str(pretrained.weights), device=device, seed=seed)
    images = split.train.joined(split.test)
    is_test = np.arange(len(images.paths)) >= len(split.train.paths)
    contest = Contest(images=images, is_test=is_test, pool=split.pool, settings=settings, on_progress=lambda *_: None)
    backbone = load_backbone(pretrained.name, pretrained.weights, n_views=settings.image_views, seed=seed)
    trainings: list[tuple[Cost, FineTuned]] = []

    def finetune(*arguments: Any, **options: Any) -> tuple[TrainingConfig, FineTuned]:
        stopwatch = Stopwatch()
        config, tuned = recipe.finetune(*arguments, **options)
        trainings.append((stopwatch.read(), tuned))
        return config, tuned

    with embedding_through(memory), ExitStack() as changed:
        seen, _ = folders.embed_images(backbone, images, split.pool, settings, lambda *_: None)
        plain = contest.enter(backbone, VersionKind.HEAD, seen)
        for change in (*changes, replaced(folders, "finetune", finetune)):
            changed.enter_context(change(split))
        contestant = contest.finetune(backbone, seen)
        calibrated, uncalibrated = contest.measure(contestant)
        chosen = contest.better(contestant, plain).kind
    ((cost, tuned),) = trainings
    return Outcome.of(
        calibrated,
        cost,
        uncalibrated_ece=uncalibrated.ece,
        note=f"epoch {tuned.best_epoch} of {tuned.history[-1].epoch}; the competition would choose {chosen.value}",
    )


def configured(**fields: Any) -> Change:
    """Change what the recipe chooses for a number of labels."""

    def change(_: Split) -> AbstractContextManager[object]:
        choose = TrainingConfig.for_labels
        return patch.object(
            TrainingConfig, "for_labels", lambda *labels, **kind: replace(choose(*labels, **kind), **fields)
        )

    return change


def _as_it_is(source: Path | bytes, spec: InputSpec, *, max_pixels: int, generator_seed: int) -> NDArray[np.uint8]:
    del generator_seed
    return to_pixels(source, spec, max_pixels=max_pixels)


def _cut_and_pasted(
    images: torch.Tensor, targets: torch.Tensor, *, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image of the batch into each one (Yun et al.: "CutMix", 2019)."""
    if alpha == 0:
        return images, targets
    height, width = images.shape[2:]
    side = np.sqrt(1 - generator.beta(1.0, 1.0))
    middle_y, middle_x = generator.uniform(0, (height, width))
    top, bottom = (int(np.clip(middle_y + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(middle_x + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, torch.lerp(targets.flip(0), targets, share)


CHANGES: dict[str, tuple[Change, ...]] = {
    "network": (),
    "network without augmentation": (replaced(batches, "training_pixels", _as_it_is),),
    "network without mixup": (configured(mixup_alpha=0.0),),
    "network without label smoothing": (configured(label_smoothing=0.0),),
    "network without average of weights": (configured(average_decay=0.0),),
    "network with one learning rate": (configured(first_layer_share=1.0),),
    "network with batch statistics": (replaced(finetuning, "freeze_batch_norm_statistics", lambda _: None),),
    "network without head first": (replaced(finetuning, "fit_head", lambda _: 0.0),),
    "network as trained": (configured(kept_share=1.0),),
    "network after the last epoch": (replaced(finetuning, "best_epoch", lambda history: history[-1].epoch),),
    "network at a constant rate": (replaced(training.Training, "learning_rate_factor", lambda _: 1.0),),
    "network with cutmix": (replaced(finetuning, "mixup", _cut_and_pasted),),
    "network without TrivialAugment": (replaced(augmentation, "_trivial_augment", lambda image, _: image),),
}
"""What is changed where the whole network learns, by the name of the variant; the first one is the recipe."""

_WHOLE, _LAST_BLOCK = (replaced(recipe, "MAX_IMAGES_ON_MAPS", most) for most in (0, 10**9))

NETWORKS = {
    **{name: partial(tune, changes=(_WHOLE, *changes)) for name, changes in CHANGES.items()},
    "last block on stored maps": partial(tune, changes=(_LAST_BLOCK,)),
}
