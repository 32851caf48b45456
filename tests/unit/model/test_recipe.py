"""How a network is fine-tuned, and what becomes of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from model import recipe
from model.backbones import Backbone, between, load_backbone, with_network
from model.finetuning import FineTuned
from model.training import TrainingConfig


def finetune(
    start: Backbone, end: Backbone, monkeypatch: pytest.MonkeyPatch, *, n_train: int = 3, device: str = "cpu"
) -> tuple[TrainingConfig, FineTuned]:
    """Do as if training had ended with a network; one image judges, one is for early stopping."""
    n_images = 2 + n_train

    def fit(*_: object, train: Any, validation: Any, **__: object) -> FineTuned:
        assert train.tolist() == [False, False] + [True] * n_train
        assert np.flatnonzero(validation).tolist() == [1]
        nothing = np.zeros((2, 1), np.float32)
        return FineTuned(
            backbone=end,
            head_weight=nothing,
            head_bias=nothing[:, 0],
            history=(),
            best_epoch=1,
            seconds=1.0,
            problems={},
        )

    monkeypatch.setattr(recipe, "fit_on_all_devices", fit)
    return recipe.finetune(
        start,
        [Path(f"{row}.jpg") for row in range(n_images)],
        np.arange(n_images) % 2,
        np.minimum(np.arange(n_images), 2),
        class_count=2,
        device=device,
        max_pixels=100,
        n_threads=1,
        on_progress=lambda *_: None,
    )


@pytest.mark.parametrize(("pretrained", "share"), [(True, 0.5), (False, 1.0)])
def test_what_was_pretrained_keeps_half_of_itself(
    pretrained: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = replace(load_backbone("squeezenet1_1", "none"), pretrained=pretrained)
    changed = copy.deepcopy(start.network)
    for tensor in changed.parameters():
        nn.init.constant_(tensor, 2.0)
    end = with_network(start, changed)
    config, tuned = finetune(start, end, monkeypatch)
    assert config.kept_share == share
    assert tuned.backbone.digest == between(start, end, share).digest
    weight = next(iter(tuned.backbone.network.parameters()))
    torch.testing.assert_close(weight, torch.lerp(next(iter(start.network.parameters())), torch.tensor(2.0), share))


@pytest.mark.parametrize(
    ("device", "pretrained", "n_train", "freezes"),
    [
        ("cpu", True, recipe.MAX_IMAGES_ON_MAPS, True),
        ("cpu", True, recipe.MAX_IMAGES_ON_MAPS + 1, False),
        ("cpu", False, 10, False),
        ("cuda", True, 10, False),
    ],
)
def test_few_labels_on_a_processor_teach_only_the_last_block_of_what_was_pretrained(
    device: str, pretrained: bool, n_train: int, freezes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "weights.pt")
    backbone = replace(load_backbone("squeezenet1_1", tmp_path / "weights.pt"), pretrained=pretrained)
    config, _ = finetune(backbone, backbone, monkeypatch, n_train=n_train, device=device)
    assert config.n_frozen_stages == (backbone.network.n_stages_before_last_block if freezes else 0)
    assert backbone.network.n_stages_before_last_block > 0
