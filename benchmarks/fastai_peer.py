"""fastai's `fine_tune` as a peer; needs ``uv sync --group peers``, nothing of Tandem does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torchvision
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    Learner,
    MultiCategoryBlock,
    Resize,
    aug_transforms,
    default_device,
    default_split,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from numpy.typing import NDArray
from torch import nn

from benchmarks.networks import accelerate
from benchmarks.peers import Lesson, Predict

EPOCHS = 5
BATCH_SIZE = 64
MIN_BATCHES = 4


def fastai_fine_tune(lesson: Lesson) -> Predict:
    """Train with ``vision_learner`` and ``fine_tune(5)``, everything else as fastai has it.

    One epoch of the head on the frozen body, then five of everything, one-cycle, base rate 0.002, in fastai's own
    head and loss, with the augmentation of ``aug_transforms`` to 224 after a crop of 256, the shorter side of the
    photos here. Batches of 64, but at least four an epoch: of a few images fastai would make one batch, or none,
    since it drops the last. Architectures that fastai does not know are cut before their classifier.
    """
    default_device(lesson.device != "cpu")
    set_seed(lesson.seed)
    train = lesson.split.train
    names = {
        path: list(image.class_names) if lesson.multiple else image.class_names[0]
        for path, image in zip(train.paths, train.labelled, strict=True)
    }
    vocabulary = list(lesson.class_names)
    labels = MultiCategoryBlock(vocab=vocabulary) if lesson.multiple else CategoryBlock(vocab=vocabulary, sort=False)
    block = DataBlock(
        blocks=(ImageBlock, labels),
        get_y=lambda path: names[path],
        splitter=lambda items: (list(range(len(items))), []),
        item_tfms=Resize(256),
        batch_tfms=aug_transforms(size=224),
    )
    size = max(2, min(BATCH_SIZE, len(train.paths) // MIN_BATCHES))
    learner = vision_learner(block.dataloaders(train.paths, bs=size, num_workers=0), _architecture(lesson))
    if lesson.bfloat16:
        accelerate(learner.model, lesson.device)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS)
    return lambda paths: _predict(learner, paths)


def _architecture(lesson: Lesson) -> object:
    """Return what fastai takes for a function of torchvision, giving our weights."""

    def architecture(*, pretrained: bool) -> nn.Module:
        assert pretrained
        return lesson.pretrained.network()

    known = model_meta.get(getattr(torchvision.models, lesson.pretrained.name), {"cut": -1, "split": default_split})
    model_meta[architecture] = {"cut": known["cut"], "split": known["split"], "stats": imagenet_stats}
    return architecture


def _predict(learner: Learner, paths: Sequence[Path]) -> NDArray[np.float32]:
    loader = learner.dls.test_dl(paths, num_workers=0)
    with learner.no_bar(), learner.no_logging():
        probabilities, _ = learner.get_preds(dl=loader)
    return probabilities.numpy()
