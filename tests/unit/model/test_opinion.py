"""A pretrained classifier's opinion is what torch says, and counts for what labels show it to be worth."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.blocks import FeatureNetwork
from model.classifier import PretrainedClassifier, find_classifier
from model.logits import LinearMap, softmax
from model.opinion import CorruptClassifier, PretrainedLayers, fit_share, pooled_with
from tests.unit.model.test_classifier import torchvision_network

CATEGORIES = ("ant", "bee", "wasp", "fly")
N_INPUTS = 6


def make_layers(n_layers: int = 1) -> PretrainedLayers:
    random = np.random.default_rng(3)
    sizes = [N_INPUTS, *[5] * (n_layers - 1), len(CATEGORIES)]
    maps = [
        LinearMap(
            weight=random.normal(size=(before, after)).astype(np.float32),
            bias=random.normal(size=after).astype(np.float32),
        )
        for before, after in itertools.pairwise(sizes)
    ]
    return PretrainedLayers(layers=tuple(maps), categories=CATEGORIES)


def make_features(n_images: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(n_images, 3 + N_INPUTS)).astype(np.float16)


def make_sure(targets: np.ndarray, n_classes: int, sureness: float, seed: int = 0) -> np.ndarray:
    """Logits that are noise, and ``sureness`` more for the right class."""
    noise = np.random.default_rng(seed).normal(size=(len(targets), n_classes))
    return (noise + sureness * np.eye(n_classes)[targets]).astype(np.float32)


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenet_v3_small", "resnet18"])
def test_it_is_what_torch_says_of_the_classes_alone(name: str) -> None:
    network = torchvision_network(name)
    trunk = FeatureNetwork(network, 64).eval()
    layers = find_classifier(network, trunk)
    assert layers is not None
    categories = tuple(f"category {number}" for number in range(1000))
    classifier = PretrainedClassifier(layers=layers, n_inputs=trunk.block_sizes[-1], categories=categories)
    arrays = classifier.as_arrays()
    assert arrays is not None
    names = [("category 7",), ("category 999", "category 0"), ("category 8",)]
    features = np.random.default_rng(0).random((5, sum(trunk.block_sizes))).astype(np.float16) / 10
    with torch.inference_mode():
        logits = layers(torch.from_numpy(features[:, -trunk.block_sizes[-1] :].astype(np.float32)))
        of_classes = [logits[:, group].logsumexp(dim=1) for group in ([7], [999, 0], [8])]
        expected = torch.stack(of_classes, dim=1).log_softmax(dim=1).numpy()
    said = arrays.opinion(names).log_probabilities(features)
    np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-3 * float(logits.std()))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.LayerNorm(4), nn.Linear(4, 2)],
        [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)],
        [nn.Linear(4, 3), nn.Hardswish()],
        [nn.Linear(4, 3), nn.Linear(3, 2)],
    ],
)
def test_of_other_layers_there_is_none(layers: list[nn.Module]) -> None:
    classifier = PretrainedClassifier(layers=nn.Sequential(*layers), n_inputs=4, categories=("ant", "bee"))
    assert classifier.as_arrays() is None


def test_what_does_nothing_at_inference_is_left_out() -> None:
    layers = nn.Sequential(nn.Dropout(), nn.Linear(4, 3), nn.Hardswish(), nn.Dropout(), nn.Linear(3, 2), nn.Identity())
    arrays = PretrainedClassifier(layers=layers, n_inputs=4, categories=("ant", "bee")).as_arrays()
    assert arrays is not None
    assert [each.weight.shape for each in arrays.layers] == [(4, 3), (3, 2)]


@pytest.mark.parametrize("n_layers", [1, 2])
def test_what_was_written_is_read_again(tmp_path: Path, n_layers: int) -> None:
    layers = make_layers(n_layers)
    layers.write(tmp_path)
    again = PretrainedLayers.read(tmp_path)
    assert again.categories == CATEGORIES
    names = [("bee",), ("ant", "fly")]
    features = make_features(7)
    expected = layers.opinion(names).log_probabilities(features)
    np.testing.assert_allclose(again.opinion(names).log_probabilities(features), expected, atol=0.02)


@pytest.mark.parametrize(
    "categories", ['["ant"]', "null", "", '["ant", "bee", "wasp", "fly", "moth"]'], ids=["few", "null", "empty", "many"]
)
def test_what_is_no_classifier_is_not_read(tmp_path: Path, categories: str) -> None:
    make_layers().write(tmp_path)
    (tmp_path / "categories.json").write_text(categories)
    with pytest.raises(CorruptClassifier, match="cannot be read"):
        PretrainedLayers.read(tmp_path)


def test_only_the_last_features_count() -> None:
    opinion = make_layers().opinion([("bee",), ("wasp",)])
    features = make_features(4)
    changed = features.copy()
    changed[:, :3] = 9
    np.testing.assert_array_equal(opinion.log_probabilities(changed), opinion.log_probabilities(features))


def test_a_category_that_there_is_not_is_refused() -> None:
    with pytest.raises(KeyError, match="hornet"):
        make_layers().opinion([("bee",), ("hornet",)])


def test_no_images_have_no_opinions() -> None:
    opinion = make_layers(2).opinion([("bee",), ("wasp", "fly")])
    assert opinion.log_probabilities(make_features(0)).shape == (0, 2)


def test_pooled_they_lie_between_the_two() -> None:
    targets = np.arange(30) % 3
    head, opinion = (np.log(softmax(make_sure(targets, 3, 2, seed))) for seed in (1, 2))
    np.testing.assert_allclose(pooled_with(head, opinion, 0.0), head, atol=1e-6)
    np.testing.assert_allclose(pooled_with(head, opinion, 1.0), opinion, atol=1e-6)
    halfway = np.sqrt(np.exp(head + opinion))
    expected = halfway / halfway.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(pooled_with(head, opinion, 0.5)), expected, atol=1e-6)


class TestShare:
    """How much an opinion counts against a head that is right more often than not."""

    def share(self, n_images: int, *, sureness: float, misled: bool = False) -> float:
        targets = np.arange(n_images) % 3
        head = softmax(make_sure(targets, 3, 2.0, seed=1))
        opinions = np.log(softmax(make_sure((targets + 1) % 3 if misled else targets, 3, sureness, seed=2)))
        return fit_share(head, opinions, targets)

    def test_without_labels_it_is_one_half(self) -> None:
        assert self.share(0, sureness=8.0) == pytest.approx(0.5)

    def test_the_more_labels_it_fits_the_larger_it_is(self) -> None:
        few, many, most = (self.share(n, sureness=9.0) for n in (3, 30, 600))
        assert 0.5 < few < many < most
        assert most > 0.8

    def test_a_few_labels_show_that_it_means_something_else(self) -> None:
        assert self.share(6, sureness=9.0, misled=True) < 0.1

    def test_what_knows_nothing_comes_to_count_for_little(self) -> None:
        assert self.share(300, sureness=0.0) < 0.25


def test_it_needs_no_torch() -> None:
    code = "import sys, model.opinion; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout.lower()) is False
