"""What the pretrained classifier says of features is what torchvision's whole network says of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from model.backbones import load_backbone, load_saved_backbone, save_backbone, with_network
from model.blocks import FeatureNetwork
from model.classifier import PretrainedClassifier, find_classifier

FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_t",
    "vit_b_32",
]


def torchvision_network(name: str) -> nn.Module:
    arguments: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False, "transform_input": True}
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    # drawn anew: untrained classifiers of some families start at zero, and would agree with anything
    for parameter in [*network.children()][-1].parameters():
        nn.init.normal_(parameter)
    return network.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_behind_the_trunk_it_is_the_whole_network(name: str) -> None:
    network = torchvision_network(name)
    size = 224 if name.startswith(("maxvit", "vit")) else 128
    images = torch.randn(1, 3, size, size)
    trunk = FeatureNetwork(network, size).eval()
    layers = find_classifier(network, trunk)
    assert layers is not None
    with torch.inference_mode():
        expected = network(images)
        logits = layers(trunk(images)[:, -trunk.block_sizes[-1] :])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_where_pooled_features_are_too_little_there_is_none(name: str) -> None:
    network = torchvision.models.get_model(name, weights=None)
    assert find_classifier(network, FeatureNetwork(network, 128)) is None


@pytest.mark.parametrize(("change", "is_kept"), [("same", True), ("other classes", False), ("no classifier", False)])
def test_weights_from_a_file_bring_it_where_they_have_it(tmp_path: Path, change: str, is_kept: bool) -> None:
    state_dict = torchvision_network("resnet18").state_dict()
    if change == "other classes":
        state_dict["fc.weight"], state_dict["fc.bias"] = torch.zeros(3, 512), torch.zeros(3)
    elif change == "no classifier":
        state_dict = {key: each for key, each in state_dict.items() if not key.startswith("fc")}
    save_file(state_dict, tmp_path / "weights.safetensors")
    classifier = load_backbone("resnet18", tmp_path / "weights.safetensors").classifier
    assert (classifier is not None) is is_kept
    if classifier:
        assert torch.equal(classifier.layers[0].weight, state_dict["fc.weight"])
        assert classifier.categories[:2] == ("tench", "goldfish")


def test_an_untrained_network_has_none() -> None:
    assert load_backbone("resnet18", "none").classifier is None


def test_a_fine_tuned_network_has_none(tmp_path: Path) -> None:
    save_file(torchvision_network("resnet18").state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone("resnet18", tmp_path / "weights.safetensors")
    tuned = with_network(backbone, backbone.network)
    assert tuned.classifier is None
    (tmp_path / "saved").mkdir()
    save_backbone(tuned, tmp_path / "saved")
    assert load_saved_backbone(tmp_path / "saved").classifier is None


class TestProbabilities:
    """Two inputs, three categories; the logit of each is known."""

    @pytest.fixture
    def classifier(self) -> PretrainedClassifier:
        layer = nn.Linear(2, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
            layer.bias.zero_()
        return PretrainedClassifier(layers=nn.Sequential(layer), n_inputs=2, categories=("ant", "bee", "fly"))

    def test_only_the_last_features_count(self, classifier: PretrainedClassifier) -> None:
        rows = np.array([[9, 9, 9, np.log(2), 0], [-9, 0, 5, np.log(2), 0]], np.float16)
        np.testing.assert_allclose(classifier.predict_proba(rows), [[0.5, 0.25, 0.25]] * 2, atol=1e-3)

    def test_a_group_is_the_sum_of_its_categories(self, classifier: PretrainedClassifier) -> None:
        rows = np.array([[np.log(2), 0], [0, np.log(6)]], np.float16)
        of_groups = classifier.predict_groups(rows, [("bee",), ("fly", "ant"), ()])
        np.testing.assert_allclose(of_groups, [[0.25, 0.75, 0, 0], [0.75, 0.25, 0, 0]], atol=1e-3)
        assert of_groups.dtype == np.float32

    def test_last_comes_the_most_probable_of_the_others(self, classifier: PretrainedClassifier) -> None:
        rows = np.array([[np.log(2), 0], [0, np.log(6)]], np.float16)
        np.testing.assert_allclose(classifier.predict_groups(rows, [("fly",)]), [[0.25, 0.5], [0.125, 0.75]], atol=1e-3)
        np.testing.assert_allclose(classifier.predict_groups(rows, []), [[0.5], [0.75]], atol=1e-3)

    def test_no_images_are_no_rows(self, classifier: PretrainedClassifier) -> None:
        assert classifier.predict_groups(np.empty((0, 2), np.float16), [("bee",)]).shape == (0, 2)

    def test_a_category_it_does_not_have_is_refused(self, classifier: PretrainedClassifier) -> None:
        with pytest.raises(KeyError, match="wasp"):
            classifier.predict_groups(np.zeros((1, 2), np.float16), [("wasp",)])
