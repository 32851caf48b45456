"""Training in bfloat16: what stays in float32, and that gradients are those of float32 but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from model.precision import bfloat16_pays, keep_depthwise_in_float32


@pytest.mark.parametrize(
    ("capabilities", "inference", "training"),
    [
        ({}, False, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"amx_bf16": True}, True, True),
        ({"sve_bf16": True}, True, False),
    ],
)
def test_the_processor_decides(
    capabilities: dict[str, bool], inference: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bfloat16_pays("cpu") is inference
    assert bfloat16_pays("cpu", training=True) is training


def test_only_depthwise_convolutions_compute_in_float32() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 8, 9, 9)
    for convolution in (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3)):
        kept = copy.deepcopy(convolution)
        keep_depthwise_in_float32(kept)
        assert kept.state_dict().keys() == convolution.state_dict().keys()
        torch.testing.assert_close(kept(images), convolution(images), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = images.bfloat16()
            output = kept(rounded)
        assert output.dtype == torch.bfloat16
        exact = convolution(rounded.float()).bfloat16()
        assert torch.equal(output, exact) == (convolution.groups == 8)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_gradients_point_where_those_of_float32_do(name: str) -> None:
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, num_classes=4).eval()
    mixed = copy.deepcopy(network)
    keep_depthwise_in_float32(mixed)
    images, targets = torch.randn(4, 3, 96, 96), torch.arange(4)
    nn.functional.cross_entropy(network(images), targets).backward()
    with torch.autocast("cpu", torch.bfloat16):
        logits = mixed(images)
    nn.functional.cross_entropy(logits.float(), targets).backward()
    expected, gradients = (
        torch.cat([each.grad.flatten() for each in trained.parameters() if each.grad is not None])
        for trained in (network, mixed)
    )
    assert nn.functional.cosine_similarity(gradients, expected, dim=0) > 0.95
    torch.testing.assert_close(gradients.norm(), expected.norm(), rtol=0.05, atol=0)


def test_a_copy_computes_with_its_own_weights() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False))
    keep_depthwise_in_float32(network)
    copied = copy.deepcopy(network)
    nn.init.zeros_(copied[0].weight)
    assert network(torch.ones(1, 4, 2, 2)).any()
    assert not copied(torch.ones(1, 4, 2, 2)).any()
