"""Backbones of every family: blocks, weights from everywhere, digests, saving."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from structlog.testing import capture_logs
from torch import nn
from torchvision.models import ResNet18_Weights, WeightsEnum

from model.backbones import (
    Backbone,
    CorruptBackbone,
    UnknownBackbone,
    backbone_names,
    between,
    choose_weights,
    layer_groups,
    load_backbone,
    load_saved_backbone,
    save_backbone,
    with_network,
)
from model.blocks import FeatureNetwork
from model.transforms import TRANSFORMS_VERSION
from model.weights import WrongWeights

SMALL = "squeezenet1_1"
FAMILIES = {
    "alexnet": (64, 192, 256),
    "convnext_tiny": (192, 384, 768),
    "densenet121": (512, 1024, 1024),
    "efficientnet_b0": (40, 112, 1280),
    "googlenet": (480, 832, 1024),
    "inception_v3": (288, 768, 2048),
    "maxvit_t": (128, 256, 512),
    "mnasnet0_5": (24, 48, 1280),
    "mobilenet_v2": (32, 96, 1280),
    "mobilenet_v3_large": (40, 112, 960),
    "regnet_x_400mf": (64, 160, 400),
    "regnet_y_400mf": (104, 208, 440),
    "resnet18": (128, 256, 512),
    "resnext50_32x4d": (512, 1024, 2048),
    "shufflenet_v2_x0_5": (48, 96, 1024),
    "squeezenet1_1": (128, 256, 512),
    "swin_t": (192, 384, 768),
    "vgg11_bn": (256, 512, 512),
    "vit_b_32": (768, 768, 768),
}


def torchvision_network(name: str, crop_size: int) -> nn.Module:
    arguments: dict[str, object] = {"image_size": crop_size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False, "transform_input": True}
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return network.eval()


def classifier_input(name: str, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return what torchvision's classifier sees, pooled, (n, channels)."""
    classifier = network.get_submodule(
        {"alexnet": "avgpool", "vgg11_bn": "avgpool", "squeezenet1_1": "classifier", "mobilenet_v3_large": "classifier"}
        .get(name, "classifier.3" if name == "maxvit_t" else "")
    )  # fmt: skip
    if classifier is network:
        classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    handle.remove()
    return seen[0].flatten(2).mean(2) if seen[0].ndim == 4 else seen[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_last_block_is_what_torchvisions_classifier_sees(name: str) -> None:
    crop_size = 224 if name.startswith(("maxvit", "vit")) else 128
    network = torchvision_network(name, crop_size)
    images = torch.randn(1, 3, crop_size, crop_size, generator=torch.Generator().manual_seed(0))
    trunk = FeatureNetwork(network, crop_size).eval()
    assert trunk.block_sizes == FAMILIES[name]
    with torch.inference_mode():
        features = trunk(images)
        expected = classifier_input(name, network, images)
    assert features.shape == (1, sum(FAMILIES[name]))
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    if name not in ("alexnet", "vgg11_bn"):  # there torchvision takes a maximum first
        last = features[:, -FAMILIES[name][-1] :]
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "vit_b_32"])
def test_gradients_reach_every_stage_in_order(name: str) -> None:
    backbone = load_backbone(name, "none")
    trunk = FeatureNetwork(torchvision_network(name, backbone.input_spec.crop_size), backbone.input_spec.crop_size)
    backbone = with_network(backbone, trunk)
    groups = layer_groups(backbone)
    assert len(groups) > 8
    assert [id(each) for group in groups for each in group] == [id(each) for each in trunk.parameters()]
    size = backbone.input_spec.crop_size
    trunk(torch.randn(1, 3, size, size)).sum().backward()
    assert all(each.grad is not None for each in trunk.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", backbone_names())
def test_every_network_has_blocks(name: str) -> None:
    backbone = load_backbone(name, "none")
    assert backbone.n_features == sum(backbone.block_sizes) > 0
    assert choose_weights(name).url.startswith("https://")


def test_names_are_classification_networks_only() -> None:
    names = backbone_names()
    assert set(FAMILIES) < set(names)
    assert not [name for name in names if "rcnn" in name or "deeplab" in name or "quantized" in name]


def test_an_unknown_name_is_refused_with_close_ones() -> None:
    with pytest.raises(UnknownBackbone, match=r"named 'resnet19': did you mean .*resnet18"):
        load_backbone("resnet19")
    with pytest.raises(UnknownBackbone, match=r"it must be one of alexnet, convnext_base"):
        load_backbone("???")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "IMAGENET1K_V1"),
        ("mobilenet_v3_large", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_V1"),
        ("vgg16", "IMAGENET1K_V1"),
        ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_weights_that_transfer_best_are_chosen(name: str, weights: str) -> None:
    assert choose_weights(name).name == weights


# --- untrained -------------------------------------------------------------------------------------------------


def test_untrained_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_backbone(SMALL, "none")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not first.pretrained
    assert "untrained" in first.note
    assert load_backbone(SMALL, "none").digest == first.digest
    assert load_backbone(SMALL, "none", seed=1).digest != first.digest
    code = f"from model.backbones import load_backbone; print(load_backbone({SMALL!r}, 'none').digest)"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == first.digest


def test_an_untrained_network_sees_where_things_are() -> None:
    backbone = load_backbone("resnet18", "none")
    assert backbone.block_sizes == (128 * 4 * 4,)
    images = torch.zeros(2, 3, 224, 224)
    images[0, :, :56, :56] = 1
    images[1, :, -56:, -56:] = 1
    with torch.inference_mode():
        here, there = backbone.network(images).view(2, 128, 4, 4)
    changed = (here - there).abs().mean(0)
    assert float(changed[0, 0]) > 10 * float(changed[0, 3])
    assert float(changed[3, 3]) > 10 * float(changed[3, 0])


def test_offline_the_backbone_is_untrained_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timeouts = []

    def no_network(*_: object, **__: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with capture_logs() as logs:
        backbone = load_backbone(SMALL)
    assert timeouts == [10.0]
    assert socket.getdefaulttimeout() is None
    assert not backbone.pretrained
    assert "no route to host" in backbone.note
    assert "squeezenet1_1-b8a52dc0.pth" in backbone.note
    assert backbone.digest == load_backbone(SMALL, "none").digest
    assert [(entry["log_level"], entry["backbone"]) for entry in logs] == [("warning", SMALL)]


def test_a_damaged_download_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"<html>please log in</html>")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert not load_backbone(SMALL).pretrained


# --- weights ---------------------------------------------------------------------------------------------------


def test_published_weights_bring_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torchvision_network("resnet18", 224)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: network.state_dict())
    backbone = load_backbone("resnet18")
    assert backbone.pretrained
    assert backbone.note == ""
    assert backbone.classifier is not None
    assert len(backbone.classifier.categories) == 1000
    assert backbone.classifier.categories[:2] == ("tench", "goldfish")
    assert backbone.input_spec.crop_size == ResNet18_Weights.IMAGENET1K_V1.transforms().crop_size[0]
    assert backbone.block_sizes == (128, 256, 512)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_whatever_their_classifier(tmp_path: Path, suffix: str) -> None:
    state_dict = torchvision_network(SMALL, 224).state_dict()
    digests = set()
    for number, change in enumerate(("same", "other classes", "no classifier", "float16")):
        changed = dict(state_dict)
        if change == "other classes":
            changed["classifier.1.weight"] = torch.zeros(3, 512, 1, 1)
        elif change == "no classifier":
            changed = {key: each for key, each in state_dict.items() if not key.startswith("classifier")}
        elif change == "float16":
            changed = {key: each.half().float().half() for key, each in state_dict.items()}
        path = tmp_path / f"weights{number}{suffix}"
        if suffix == ".pth":
            torch.save(changed, path)
        else:
            save_file(changed, path)
        backbone = load_backbone(SMALL, path)
        assert backbone.pretrained
        assert {each.dtype for each in backbone.network.state_dict().values()} == {torch.float32}
        if change != "float16":
            digests.add(backbone.digest)
    assert len(digests) == 1


def test_densenet_weights_with_the_names_of_2017(tmp_path: Path) -> None:
    state_dict = torchvision_network("densenet121", 224).state_dict()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): each for key, each in state_dict.items()}
    assert old.keys() != state_dict.keys()
    torch.save(old, tmp_path / "old.pth")
    torch.save(state_dict, tmp_path / "new.pth")
    assert load_backbone("densenet121", tmp_path / "old.pth").digest == (
        load_backbone("densenet121", tmp_path / "new.pth").digest
    )


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "inception_v3"])
def test_networks_with_peculiar_state_dicts(name: str, tmp_path: Path) -> None:
    save_file(torchvision_network(name, 224).state_dict(), tmp_path / "weights.safetensors")
    assert load_backbone(name, tmp_path / "weights.safetensors").pretrained


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    for name in ("resnet18", "resnet34", "mobilenet_v2"):
        torch.save(torchvision_network(name, 224).state_dict(), tmp_path / f"{name}.pth")
    with pytest.raises(WrongWeights, match=r"keys \(layer1\.2\.conv1\.weight.*\) missing, no key unexpected"):
        load_backbone("resnet34", tmp_path / "resnet18.pth")
    with pytest.raises(WrongWeights, match=r"no key missing, .* keys \(layer1\.2\.conv1\.weight"):
        load_backbone("resnet18", tmp_path / "resnet34.pth")
    with pytest.raises(WrongWeights, match=r"conv1\.weight"):
        load_backbone("resnet18", tmp_path / "mobilenet_v2.pth")
    with pytest.raises(WrongWeights, match=r"size mismatch for features"):
        load_backbone("mobilenet_v3_small", _with_first_layer(tmp_path, "mobilenet_v3_small"))


def _with_first_layer(folder: Path, name: str) -> Path:
    state_dict = torchvision_network(name, 224).state_dict()
    state_dict["features.0.0.weight"] = torch.zeros(7, 3, 3, 3)
    torch.save(state_dict, folder / "wide.pth")
    return folder / "wide.pth"


def test_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongWeights, match="there is no file"):
        load_backbone(SMALL, tmp_path / "gone.pth")
    for number, content in enumerate((b"", b"not a state dict", b"\x80\x02\x95")):
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / f"{number}{suffix}"
            path.write_bytes(content)
            with pytest.raises(WrongWeights, match="is not a state dict"):
                load_backbone(SMALL, path)
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(WrongWeights, match="must map names to tensors"):
        load_backbone(SMALL, tmp_path / "checkpoint.pth")
    torch.save(torchvision.models.squeezenet1_1(), tmp_path / "module.pth")
    with pytest.raises(WrongWeights, match="read safely"):
        load_backbone(SMALL, tmp_path / "module.pth")


# --- digest and saving -----------------------------------------------------------------------------------------


def finetuned(name: str = SMALL) -> Backbone:
    backbone = load_backbone(name, "none")
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.mul_(1.01)
    return with_network(backbone, backbone.network)


def test_a_changed_network_has_another_digest() -> None:
    backbone = load_backbone(SMALL, "none")
    changed = finetuned()
    assert len(changed.digest) == 64
    assert changed.digest != backbone.digest
    assert changed.pretrained
    assert not changed.network.training


def test_between_two_networks_weights_lie_between() -> None:
    start = load_backbone("squeezenet1_1", "none")
    changed = copy.deepcopy(start.network)
    for tensor in changed.parameters():
        nn.init.constant_(tensor, 2.0)
    end = with_network(start, changed)
    middle = between(start, end, 0.25)
    before, after = start.network.state_dict(), middle.network.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], 0.75 * tensor + 0.5)
    assert len({start.digest, middle.digest, end.digest}) == 3
    assert middle.pretrained
    assert between(start, end, 1.0).digest == end.digest


def test_the_digest_covers_the_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_backbone(SMALL, "none")
    monkeypatch.setattr("model.backbones.TRANSFORMS_VERSION", TRANSFORMS_VERSION + 1)
    assert with_network(before, before.network).digest != before.digest


@pytest.mark.parametrize("name", [SMALL, "mobilenet_v3_small"])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, name: str) -> None:
    backbone = finetuned(name)
    backbone.network.to(memory_format=torch.channels_last)
    save_backbone(backbone, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.json", "backbone.safetensors"]
    loaded = load_saved_backbone(tmp_path)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(images), backbone.network(images))
    assert (loaded.name, loaded.digest, loaded.block_sizes, loaded.input_spec, loaded.pretrained) == (
        backbone.name,
        backbone.digest,
        backbone.block_sizes,
        backbone.input_spec,
        True,
    )


def test_a_full_network_keeps_its_blocks_when_saved(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    torch.save(torchvision_network(SMALL, 224).state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(SMALL, tmp_path / "weights.pth")
    save_backbone(backbone, tmp_path / "saved")
    assert load_saved_backbone(tmp_path / "saved").block_sizes == backbone.block_sizes == FAMILIES[SMALL]


def test_damage_is_noticed(tmp_path: Path) -> None:
    backbone = finetuned()
    save_backbone(backbone, tmp_path)
    weights, description = tmp_path / "backbone.safetensors", tmp_path / "backbone.json"
    good_weights, good_description = weights.read_bytes(), description.read_text()
    flipped = bytearray(good_weights)
    flipped[-5] ^= 1
    fields = json.loads(good_description)
    for bad_weights, bad_description in [
        (bytes(flipped), good_description),
        (good_weights[:-100], good_description),
        (b"", good_description),
        (good_weights, good_description[:-50]),
        (good_weights, "[]"),
        (good_weights, json.dumps({**fields, "name": "resnet18"})),
        (good_weights, json.dumps({**fields, "name": "nothing"})),
        (good_weights, json.dumps({**fields, "digest": "0" * 64})),
        (good_weights, json.dumps({**fields, "input_spec": {**fields["input_spec"], "resize_size": 300}})),
    ]:
        weights.write_bytes(bad_weights)
        description.write_text(bad_description)
        with pytest.raises(CorruptBackbone, match=str(tmp_path)):
            load_saved_backbone(tmp_path)
    weights.unlink()
    with pytest.raises(CorruptBackbone):
        load_saved_backbone(tmp_path)
