"""What only a GPU shows: precision, reproducibility, memory that is too small, and nobody who waits without need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
import torchvision
from PIL import Image

from model import finetuning
from model.backbones import Backbone, load_backbone
from model.features import Engine
from model.finetuning import FineTuned, TrainingConfig, fit
from model.launch import fit_on_all_devices
from model.training import Training
from model.transforms import normalise, to_pixels

pytestmark = pytest.mark.gpu

MAX_PIXELS = 100_000
N_IMAGES = 72
ORDER = np.arange(N_IMAGES)
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=24,
    learning_rate=1e-4,
    head_learning_rate=1e-4,
    first_layer_share=0.5,
    mixup_alpha=0.2,
    average_decay=0.5,
    patience=10,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """All of a ResNet-18 with random weights, which has seen noise only: enough for its batch-norm statistics."""
    weights = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.randn(16, 3, 64, 64))
    torch.save(network.state_dict(), weights)
    return load_backbone("resnet18", weights)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise around one colour per class, coarse enough to survive resizing."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = [folder / f"{row}.png" for row in ORDER]
    for row, path in enumerate(paths):
        colour = np.full(3, 60) + 140 * (np.arange(3) == row % 3)
        noise = generator.normal(colour, 50, (16, 20, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).resize((320, 256), Image.Resampling.NEAREST).save(path)
    return paths


def run(backbone: Backbone, sources: list[Path], **changes: Any) -> FineTuned:
    arguments: dict[str, Any] = {
        "class_count": 3,
        "multiple": False,
        "train": ORDER < 48,
        "validation": ORDER >= 48,
        "device": "cuda",
        "config": CONFIG,
        "max_pixels": MAX_PIXELS,
        "n_threads": 2,
        "on_progress": lambda *_: None,
    }
    return fit(backbone, sources, ORDER % 3, **(arguments | changes))


def test_features_in_bfloat16_point_where_those_in_float32_do(backbone: Backbone, sources: list[Path]) -> None:
    engine = Engine(backbone, "cuda")
    features = engine.embed(sources, max_pixels=MAX_PIXELS).features.astype(np.float64)
    pixels = np.stack([to_pixels(source, backbone.input_spec, max_pixels=MAX_PIXELS) for source in sources])
    with torch.inference_mode():
        expected = backbone.network(normalise(pixels, backbone.input_spec)).double().numpy()
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((features * expected).sum(axis=1) / lengths).min() > 0.999


def test_pixels_lie_on_the_gpu_when_their_turn_comes(backbone: Backbone, sources: list[Path]) -> None:
    engine = Engine(backbone, "cuda")
    runtime = engine.runtime
    staged: list[torch.Tensor] = []

    def compute(pixels: torch.Tensor) -> np.ndarray:
        staged.append(pixels)
        return runtime(pixels)

    engine.runtime = compute  # type: ignore[assignment]
    features = engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=16).features
    assert [(len(pixels), pixels.is_cuda) for pixels in staged] == [*[(16, True)] * 4, (8, True)]
    pixels = [to_pixels(source, backbone.input_spec, max_pixels=MAX_PIXELS) for source in sources]
    np.testing.assert_array_equal(np.concatenate([each.cpu() for each in staged]), np.stack(pixels))
    from_host = [runtime(np.stack(pixels[start : start + 16])) for start in range(0, N_IMAGES, 16)]
    np.testing.assert_array_equal(features, np.concatenate(from_host).astype(np.float16))


def test_embedding_goes_on_where_memory_is_too_small_for_the_batch(backbone: Backbone, sources: list[Path]) -> None:
    engine = Engine(backbone, "cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected = engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=N_IMAGES).features
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / torch.cuda.mem_get_info()[1])
    try:
        with structlog.testing.capture_logs() as logs:
            features = engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=N_IMAGES).features
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [entry["batch_size"] for entry in logs if "halving" in entry["event"]]
    np.testing.assert_allclose(features, expected, atol=0.05 * expected.astype(np.float32).std())


def test_same_seed_same_device_same_weights(backbone: Backbone, sources: list[Path]) -> None:
    nothing = ORDER < 0
    first, second = (run(backbone, sources, validation=nothing) for _ in range(2))
    assert first.backbone.digest == second.backbone.digest != backbone.digest
    np.testing.assert_array_equal(first.head_weight, second.head_weight)
    assert first.history == second.history
    other = run(backbone, sources, validation=nothing, config=replace(CONFIG, seed=1))
    assert other.backbone.digest != first.backbone.digest
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_learns_what_a_processor_does(backbone: Backbone, sources: list[Path]) -> None:
    config = replace(CONFIG, epochs=1)
    on_gpu, on_cpu = (run(backbone, sources, config=config, device=device) for device in ("cuda", "cpu"))
    for gpu, cpu in zip(on_gpu.history, on_cpu.history, strict=True):
        assert gpu.train_loss == pytest.approx(cpu.train_loss, rel=0.05)
        assert gpu.validation_loss == pytest.approx(cpu.validation_loss, rel=0.1)


def test_memory_too_small_for_the_batch_gives_the_same_in_parts(backbone: Backbone, sources: list[Path]) -> None:
    config = replace(CONFIG, epochs=1, mixup_alpha=0.0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected = run(backbone, sources, config=config)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    # weights, their averages and the optimizer's state take some 300 MB of the peak; the rest is the batch's
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / torch.cuda.mem_get_info()[1])
    try:
        with structlog.testing.capture_logs() as logs:
            in_parts = run(backbone, sources, config=config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [entry["largest_part"] for entry in logs if "out of device memory" in entry["event"]]
    assert [report.validation_loss for report in in_parts.history] == pytest.approx(
        [report.validation_loss for report in expected.history], rel=0.05
    )


def test_an_epoch_waits_for_the_gpu_only_at_its_end(
    backbone: Backbone, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits within a step leaves the GPU without work while the next kernels are started."""
    steps: list[int] = []
    train_one_epoch = finetuning.train_one_epoch

    def watch_second_epoch(training: Training, epoch: int) -> float:
        if epoch == 1:
            return train_one_epoch(training, epoch)
        batches = list(training.training_batches(epoch))  # the loader's own thread may wait
        monkeypatch.setattr(training, "training_batches", lambda _: iter(batches))
        n_steps = training.learner.n_steps
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchronizing") as waited:
                train_one_epoch(training, epoch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert "tolist" in str(waited.traceback[-1].statement)
        steps.append(training.learner.n_steps - n_steps)
        return 1.0

    monkeypatch.setattr(finetuning, "train_one_epoch", watch_second_epoch)
    run(backbone, sources)
    assert steps == [2]


def test_two_gpus_learn_what_one_does(backbone: Backbone, sources: list[Path]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    config = replace(CONFIG, mixup_alpha=0.0)
    expected = run(backbone, sources, config=config)
    arguments: dict[str, Any] = {"train": ORDER < 48, "validation": ORDER >= 48, "device": "cuda", "config": config}
    both = fit_on_all_devices(
        backbone,
        sources,
        ORDER % 3,
        class_count=3,
        multiple=False,
        max_pixels=MAX_PIXELS,
        n_threads=4,
        on_progress=lambda *_: None,
        n_processes=2,
        **arguments,
    )
    assert [report.validation_loss for report in both.history] == pytest.approx(
        [report.validation_loss for report in expected.history], rel=0.05
    )
