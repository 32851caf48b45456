"""Runtimes: each agrees with float32, the best one is chosen, and nothing is told to anybody."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from structlog.testing import capture_logs

from model import runtimes
from model.backbones import Backbone, load_backbone
from model.runtimes import OpenvinoRuntime, Runtime, TorchRuntime, WrongConversion, choose_runtime
from model.transforms import normalise

N_KINDS = 4
N_PICTURES = 12
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("squeezenet1_1", "none")


def pictures(n: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blurred patterns of ``N_KINDS`` kinds in turn, which differ by colour and coarseness."""
    generator = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(40, 216, (N_KINDS, 3))
    images = []
    for number in range(n):
        kind = number % N_KINDS
        cells = 4 * (kind + 1)
        coarse = (colours[kind] + generator.normal(0, 40, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
        images.append(np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(images)


def in_float32(backbone: Backbone, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return backbone.network(normalise(pixels, backbone.input_spec)).numpy()


def with_all_blocks(name: str, folder: Path) -> Backbone:
    """Return a backbone that is built like a trained one; its weights are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return load_backbone(name, folder / "weights.safetensors")


def check_agreement(runtime: Runtime, backbone: Backbone) -> None:
    """Every block points the same way as in float32, and a linear probe sees the same classes."""
    pixels = pictures(N_PICTURES, backbone.input_spec.crop_size, seed=2)
    features, expected = runtime(pixels), in_float32(backbone, pixels)
    assert features.shape == expected.shape == (N_PICTURES, backbone.n_features)
    assert features.dtype == np.float32
    ends = np.cumsum(backbone.block_sizes)[:-1]
    for block, right in zip(np.split(features, ends, axis=1), np.split(expected, ends, axis=1), strict=True):
        cosines = (block * right).sum(1) / np.linalg.norm(block, axis=1) / np.linalg.norm(right, axis=1)
        assert cosines.min() > 0.999
        assert np.abs(block - right).mean() < 0.03 * right.std(axis=0).mean()
    spread = expected.std(axis=0) + 1e-6 * expected.std()
    centred, right = (features - expected.mean(0)) / spread, (expected - expected.mean(0)) / spread
    probe = np.linalg.pinv(right, rcond=1e-2) @ np.eye(N_KINDS)[np.arange(N_PICTURES) % N_KINDS]
    same = (centred @ probe).argmax(1) == (right @ probe).argmax(1)
    assert same.sum() >= N_PICTURES - 1


FEW = ["mobilenet_v3_large", "mobilenet_v2", "resnet18"]
MANY = ["densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16", "maxvit_t"]
NAMES = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MANY)]


@pytest.mark.parametrize("name", NAMES)
def test_every_runtime_agrees_with_float32(name: str, tmp_path: Path) -> None:
    backbone = with_all_blocks(name, tmp_path)
    weights = {key: each.clone() for key, each in backbone.network.state_dict().items()}
    check_agreement(TorchRuntime(backbone, bfloat16=True), backbone)
    if importlib.util.find_spec("openvino"):
        check_agreement(OpenvinoRuntime(backbone, bfloat16=True), backbone)
    after = backbone.network.state_dict()
    assert all(torch.equal(each, after[key]) and each.dtype == after[key].dtype for key, each in weights.items())


@pytest.mark.parametrize("make", [TorchRuntime, pytest.param(OpenvinoRuntime, marks=needs_openvino)])
def test_in_float32_only_rounding_differs(make: type[TorchRuntime] | type[OpenvinoRuntime], backbone: Backbone) -> None:
    runtime = make(backbone, bfloat16=False)
    pixels = pictures(3, backbone.input_spec.crop_size)
    expected = in_float32(backbone, pixels)
    np.testing.assert_allclose(runtime(pixels), expected, rtol=1e-4, atol=1e-4 * expected.std())


@needs_openvino
def test_several_threads_get_their_own_rows(backbone: Backbone) -> None:
    runtime = OpenvinoRuntime(backbone, bfloat16=False)
    batches = [pictures(3, backbone.input_spec.crop_size, seed) for seed in range(8)]
    expected = [runtime(each) for each in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(got, right) for got, right in zip(pool.map(runtime, batches), expected, strict=True))
    assert runtime(batches[0][:0]).shape == (0, backbone.n_features)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_fastest_runtime_is_taken(backbone: Backbone, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "bfloat16_pays", lambda _: bfloat16)
    installed = importlib.util.find_spec("openvino") is not None
    runtime = choose_runtime(backbone, "cpu")
    assert runtime.name == f"{'OpenVINO' if installed else 'torch'} {'bfloat16' if bfloat16 else 'float32'}"


def test_without_openvino_torch_runs_the_network(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with capture_logs() as logs:
        assert choose_runtime(backbone, "cpu").name.startswith("torch")
    assert logs == []


@needs_openvino
def test_torch_runs_what_cannot_be_converted(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(runtimes, "_converted", refuse)
    with capture_logs() as logs:
        assert choose_runtime(backbone, "cpu").name.startswith("torch")
    assert logs[0]["log_level"] == "warning"
    assert "no such operation" in logs[0]["error"]


@needs_openvino
def test_a_conversion_that_computes_something_else_is_refused(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = runtimes._converted
    other = runtimes.FromPixels(load_backbone("squeezenet1_1", "none", seed=1).network, backbone.input_spec)
    monkeypatch.setattr(runtimes, "_converted", lambda _, probe: convert(other, probe))
    with pytest.raises(WrongConversion, match="features of block 0 deviate"):
        OpenvinoRuntime(backbone, bfloat16=False)


@needs_openvino
def test_openvino_tells_nobody_that_it_is_used() -> None:
    code = """
import sys
heard = []
sys.addaudithook(lambda event, _: heard.append(event) if event.startswith(("socket.", "urllib.", "http.")) else None)
from model.backbones import load_backbone
from model.runtimes import OpenvinoRuntime
OpenvinoRuntime(load_backbone("squeezenet1_1", "none"), bfloat16=False)
sys.exit(f"{heard}" if {"socket.connect", "socket.getaddrinfo", "urllib.Request"} & set(heard) else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
