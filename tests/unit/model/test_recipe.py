"""What becomes of a network that was fine-tuned."""

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
from model.backbones import between, load_backbone, with_network
from model.finetuning import FineTuned


@pytest.mark.parametrize(("pretrained", "share"), [(True, 0.5), (False, 1.0)])
def test_what_was_pretrained_keeps_half_of_itself(
    pretrained: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = replace(load_backbone("squeezenet1_1", "none"), pretrained=pretrained)
    changed = copy.deepcopy(start.network)
    for tensor in changed.parameters():
        nn.init.constant_(tensor, 2.0)
    end = with_network(start, changed)

    def fit(*_: object, train: Any, validation: Any, **__: object) -> FineTuned:
        assert train.tolist() == [False, False, True, True, True]
        assert validation.tolist() == [False, True, False, False, False]
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
    config, tuned = recipe.finetune(
        start,
        [Path(f"{row}.jpg") for row in range(5)],
        np.array([0, 1, 0, 1, 0]),
        np.arange(5),
        class_count=2,
        device="cpu",
        max_pixels=100,
        n_threads=1,
        on_progress=lambda *_: None,
    )
    assert config.kept_share == share
    assert tuned.backbone.digest == between(start, end, share).digest
    weight = next(iter(tuned.backbone.network.parameters()))
    torch.testing.assert_close(weight, torch.lerp(next(iter(start.network.parameters())), torch.tensor(2.0), share))


@pytest.mark.parametrize(
    ("device", "pretrained", "freezes"), [("cpu", True, True), ("cpu", False, False), ("cuda", True, False)]
)
def test_on_a_processor_only_the_last_block_of_what_was_pretrained_learns(
    device: str, pretrained: bool, freezes: bool, tmp_path: Path
) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "weights.pt")
    backbone = replace(load_backbone("squeezenet1_1", tmp_path / "weights.pt"), pretrained=pretrained)
    n_frozen = recipe.n_frozen_stages(backbone, device)
    assert n_frozen == (backbone.network.block_ends[-2] + 1 if freezes else 0)
