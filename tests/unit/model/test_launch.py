"""Fine-tuning with two real processes that exchange gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from PIL import Image

from model.backbones import Backbone, load_backbone, with_network
from model.finetuning import TrainingConfig, TrainingDiverged, fit
from model.launch import fit_on_all_devices
from model.transforms import InputSpec

SPEC = InputSpec(resize_size=52, crop_size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), interpolation="bilinear")
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=8,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    first_layer_share=0.5,
    mixup_alpha=0.0,
    average_decay=0.5,
    patience=10,
    head_penalty=100.0,
)
N_IMAGES = 33
N_BATCHES = 3 * (3 + 1)
ORDER = np.arange(N_IMAGES)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A small network that passes for a pretrained one."""
    untrained = replace(load_backbone("shufflenet_v2_x0_5", "none"), input_spec=SPEC)
    return with_network(untrained, untrained.network)


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Noise around one colour per class: 24 images to train on, one of them unreadable, and 9 to validate."""
    generator = np.random.default_rng(0)
    sources = [tmp_path / f"{row}.png" for row in ORDER]
    for row, source in enumerate(sources):
        colour = np.full(3, 60) + 140 * (np.arange(3) == row % 3)
        Image.fromarray(generator.normal(colour, 50, (40, 48, 3)).clip(0, 255).astype(np.uint8)).save(source)
    sources[7].write_bytes(b"not an image")
    return {
        "sources": sources,
        "targets": ORDER % 3,
        "class_count": 3,
        "multiple": False,
        "train": ORDER < 24,
        "validation": ORDER >= 24,
        "device": "cpu",
        "config": CONFIG,
        "max_pixels": 10_000,
        "n_threads": 1,
        "on_progress": lambda *_: None,
    }


def test_two_processes_learn_what_one_does(backbone: Backbone, arguments: dict[str, Any], tmp_path: Path) -> None:
    expected = fit(backbone, **arguments)
    seen: list[tuple[int, int]] = []
    arguments["on_progress"] = lambda done, total: seen.append((done, total))
    resume_folder = tmp_path / "state" / "p1"
    with structlog.testing.capture_logs() as logs:
        both = fit_on_all_devices(backbone, **arguments, n_processes=2, resume_folder=resume_folder)
    assert seen == [(done, N_BATCHES) for done in range(1, N_BATCHES + 1)] + [(N_BATCHES, N_BATCHES)]
    assert list(both.problems) == list(expected.problems) == [7]
    assert both.best_epoch == expected.best_epoch
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        losses = [[getattr(report, name) for report in result.history] for result in (both, expected)]
        np.testing.assert_allclose(*losses, rtol=1e-2)
    np.testing.assert_allclose(both.head_weight, expected.head_weight, atol=2e-3)
    assert with_network(both.backbone, both.backbone.network).digest == both.backbone.digest != backbone.digest
    assert both.backbone.pretrained
    assert not both.backbone.network.training
    assert [(entry["epoch"], entry["rank"]) for entry in logs if entry["event"] == "epoch finished"] == [
        (0, 0),
        (1, 0),
        (2, 0),
    ]
    assert [path.name for path in resume_folder.iterdir()] == ["training-state.safetensors"]
    again = fit_on_all_devices(backbone, **arguments, resume_folder=resume_folder)
    assert again.backbone.digest == both.backbone.digest, "one process takes up what two have learned"


def test_what_the_training_raises_is_raised_here(backbone: Backbone, arguments: dict[str, Any]) -> None:
    arguments["config"] = replace(CONFIG, learning_rate=1e30, head_learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(TrainingDiverged, match=r"epoch 1 is .*: try a lower learning rate"):
        fit_on_all_devices(replace(backbone, pretrained=False), **arguments, n_processes=2)


@pytest.mark.parametrize(
    ("device", "n_devices", "batch_size", "expected"),
    [
        ("cpu", 8, 64, (1, None)),
        ("cuda:1", 8, 64, (1, 16)),
        ("cuda", 1, 64, (1, 16)),
        ("cuda", 8, 64, (8, 2)),
        ("cuda", 8, 16, (2, 8)),
        ("cuda", 8, 4, (1, 16)),
        ("cuda", 4, 64, (4, 4)),
    ],
)
def test_as_many_processes_as_the_batches_are_large_enough_for(
    backbone: Backbone,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    n_devices: int,
    batch_size: int,
    expected: tuple[int, int | None],
) -> None:
    class Started(Exception):
        """Carries what would have been started."""

    def run_ranks(works: list[Any], **_: object) -> None:
        raise Started(len(works), works[0].args[0].keywords["n_threads"])

    def fit_here(*_: object, n_threads: int | None, **__: object) -> None:
        raise Started(1, n_threads)

    monkeypatch.setattr("model.launch.run_ranks", run_ranks)
    monkeypatch.setattr("model.launch.fit", fit_here)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_devices)
    changes = {"device": device, "config": replace(CONFIG, batch_size=batch_size), "n_threads": None}
    with pytest.raises(Started) as started:
        fit_on_all_devices(backbone, **(arguments | changes))
    assert started.value.args == expected
