"""Fine-tuning the last block on what the stages before it make of each image."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from model import batches, execution, training
from model.backbones import Backbone, layer_groups, load_backbone, with_network
from model.blocks import FeatureNetwork
from model.finetuning import FineTuned
from model.launch import fit_on_all_devices
from model.maps import StoredMaps
from model.transforms import InputSpec, to_pixels
from tests.unit.model.test_finetuning import (
    CONFIG,
    Cancelled,
    LabelledFiles,
    cancel_at,
    draw_files,
    logits,
    run,
)

SIDE = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LabelledFiles:
    return draw_files(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A network of full depth, with weights that are as good as random."""
    weights = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), weights)
    loaded = load_backbone("shufflenet_v2_x0_5", weights)
    smaller = replace(loaded, input_spec=replace(loaded.input_spec, resize_size=SIDE + 4, crop_size=SIDE))
    return with_network(smaller, smaller.network)


def frozen(backbone: Backbone, **changes: Any) -> Any:
    return replace(CONFIG, n_frozen_stages=backbone.network.n_stages_before_last_block, **changes)


def test_the_last_block_learns_what_the_same_images_would_teach_it(
    files: LabelledFiles, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "bfloat16_pays", lambda *_, **__: False)
    config = frozen(backbone, learning_rate=2e-4, head_learning_rate=1e-4)
    n_frozen = config.n_frozen_stages

    def last_block_alone(whole: Backbone) -> list[list[nn.Parameter]]:
        whole.network.stages[:n_frozen].requires_grad_(requires_grad=False)
        return layer_groups(whole)

    def as_it_is(source: Path, spec: InputSpec, *, max_pixels: int, **_: object) -> Any:
        return to_pixels(source, spec, max_pixels=max_pixels)

    on_maps = run(files, backbone, config)
    with ExitStack() as changed:
        changed.enter_context(patch.object(training, "layer_groups", last_block_alone))
        changed.enter_context(patch.object(batches, "training_pixels", as_it_is))
        on_images = run(files, backbone, replace(config, n_frozen_stages=0))
    before, after = backbone.network.state_dict(), on_maps.backbone.network.state_dict()
    changed_stages = {
        int(name.split(".")[1]) for name, tensor in after.items() if not torch.equal(tensor, before[name])
    }
    assert changed_stages
    assert min(changed_stages) >= n_frozen > 0
    steps = [
        (after[name] - before[name], tensor - before[name])
        for name, tensor in on_images.backbone.network.state_dict().items()
    ]
    differences = torch.cat([(on_map - on_image).float().flatten() for on_map, on_image in steps])
    lengths = torch.cat([on_image.float().flatten() for _, on_image in steps])
    assert differences.norm() < 0.05 * lengths.norm()
    assert [report.validation_loss for report in on_maps.history] == pytest.approx(
        [report.validation_loss for report in on_images.history], rel=1e-3
    )


def test_every_image_is_decoded_once(files: LabelledFiles, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def decode(source: Path, spec: InputSpec, *, max_pixels: int) -> Any:
        decoded.append(source)
        return to_pixels(source, spec, max_pixels=max_pixels)

    monkeypatch.setattr(batches, "to_pixels", decode)
    run(files, backbone, frozen(backbone))
    assert sorted(decoded) == sorted(files.sources[:33])


def test_what_was_validated_is_what_comes_back(files: LabelledFiles, backbone: Backbone) -> None:
    fine_tuned = run(files, backbone, frozen(backbone, learning_rate=3e-3, head_penalty=1e-3))
    chosen = np.flatnonzero(files.validation)
    right = logits(fine_tuned, [files.sources[row] for row in chosen]).argmax(axis=1) == files.targets[chosen]
    assert right.mean() == pytest.approx(fine_tuned.history[fine_tuned.best_epoch].validation_accuracy)


@pytest.mark.parametrize("n_batches", [3, 6, 9])
def test_goes_on_where_it_was_killed(files: LabelledFiles, backbone: Backbone, tmp_path: Path, n_batches: int) -> None:
    config = frozen(backbone, mixup_alpha=0.2)
    seen: list[tuple[int, int]] = []
    whole = run(files, backbone, config, on_progress=lambda *progress: seen.append(progress))
    total = 4 + 3 * (3 + 1)
    assert seen == [*((done, total) for done in range(1, total + 1)), (total, total)]
    with pytest.raises(Cancelled):
        run(files, backbone, config, resume_folder=tmp_path, on_progress=cancel_at(n_batches))
    resumed = run(files, backbone, config, resume_folder=tmp_path)
    assert resumed.history == whole.history
    assert resumed.backbone.digest == whole.backbone.digest
    assert [path.name for path in tmp_path.iterdir()] == ["training-state.safetensors"]
    seen.clear()
    assert run(files, backbone, config, resume_folder=tmp_path, on_progress=lambda *progress: seen.append(progress))
    assert seen == [(total, total)], "of a finished training no map is computed again"


def test_unreadable_images_have_no_map(files: LabelledFiles, backbone: Backbone, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"not an image")
    sources = list(files.sources)
    sources[5], sources[25] = damaged, tmp_path / "missing.jpg"
    fine_tuned = run(files, backbone, frozen(backbone), sources=sources)
    assert set(fine_tuned.problems) == {5, 25}
    assert {report.validation_accuracy for report in fine_tuned.history} <= {n_right / 8 for n_right in range(9)}
    with pytest.raises(ValueError, match="none of the 24 images to train on can be read; the first: "):
        run(files, backbone, frozen(backbone), sources=[damaged] * 36)


def test_two_processes_learn_what_one_does(files: LabelledFiles, backbone: Backbone) -> None:
    def fit(n_processes: int) -> FineTuned:
        return fit_on_all_devices(
            backbone,
            files.sources,
            files.targets,
            class_count=3,
            multiple=False,
            train=files.train,
            validation=files.validation,
            device="cpu",
            config=frozen(backbone),
            max_pixels=10_000,
            n_threads=1,
            on_progress=lambda *_: None,
            n_processes=n_processes,
        )

    both, one = fit(2), fit(1)
    losses = [[report.validation_loss for report in result.history] for result in (both, one)]
    np.testing.assert_allclose(*losses, rtol=1e-2)
    np.testing.assert_allclose(both.head_weight, one.head_weight, atol=2e-3)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "densenet121", "vgg11_bn", "vit_b_32", "swin_t"])
def test_maps_are_all_that_the_last_block_needs(name: str) -> None:
    network = FeatureNetwork(torchvision.models.get_model(name, weights=None), 224).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    n_stages = network.n_stages_before_last_block
    with torch.inference_mode():
        expected = network(images)[:, -network.block_sizes[-1] :]
        maps = network.maps(images, n_stages)
        torch.testing.assert_close(network.last_block(maps, n_stages), expected)
        torch.testing.assert_close(network.last_block(images, 0), expected)
    assert 0 < n_stages < len(network.stages)
    assert list(network.stages[n_stages:].parameters())


def test_a_network_of_one_block_has_none_before_it() -> None:
    assert load_backbone("shufflenet_v2_x0_5", "none").network.n_stages_before_last_block == 0


def test_maps_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    targets = torch.eye(4)
    maps = torch.arange(4 * 6, dtype=torch.float32).view(4, 2, 3)
    maps[2, 0, 0], maps[2, 0, 1] = 1e9, -1e9
    with StoredMaps(tmp_path / "state", targets) as stored:
        stored.append([3, 1], maps[[3, 1]])
        stored.append([2], maps[[2]])
        first, second = stored.batches([np.array([1, 0, 2]), np.array([0])])
        assert list((tmp_path / "state").iterdir()) == [], "nothing is left when the process dies"
    assert first.inputs.dtype is torch.float16
    torch.testing.assert_close(first.inputs.float(), maps[[1, 2]].clamp(-65504, 65504))
    torch.testing.assert_close(first.targets, targets[[1, 2]])
    assert (len(second), second.targets.shape) == (0, (0, 4))
