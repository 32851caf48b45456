"""The classifier that a network was pretrained with: what its features say before there is any label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.blocks import FeatureNetwork
from model.logits import LinearMap
from model.opinion import PretrainedLayers

_NOTHING_AT_INFERENCE = nn.Dropout | nn.Identity


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PretrainedClassifier:
    """From features of a backbone to the categories of its pretraining, mostly ImageNet's.

    ``layers`` take the last ``n_inputs`` features of an image, which are those of the last block, and give one logit
    for each of ``categories``.
    """

    layers: nn.Sequential
    n_inputs: int
    categories: tuple[str, ...]

    def predict_proba(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return the softmax probability of each category, (n, n_categories), from feature rows, (n, n_features)."""
        inputs = torch.from_numpy(features[:, -self.n_inputs :].astype(np.float32))
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = self.layers(inputs).softmax(dim=1).numpy()
        return probabilities

    def as_arrays(self) -> PretrainedLayers | None:
        """Return the same classifier for numpy, where it is made of linear layers with hard swish between them."""
        layers = [layer for layer in self.layers if not isinstance(layer, _NOTHING_AT_INFERENCE)]
        linear = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
        between = [layer for layer in layers[1::2] if isinstance(layer, nn.Hardswish)]
        if len(linear) + len(between) < len(layers) or len(linear) == len(between):
            return None
        maps = [_as_map(layer) for layer in linear]
        return PretrainedLayers(layers=tuple(maps), categories=self.categories)

    def predict_groups(self, features: NDArray[np.float16], groups: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return the probability that each image is of any category of each group, (n, n_groups + 1).

        The last column is that of the most probable category outside of all groups, 0 where none is.

        Raises:
            KeyError: there is no category of that name.
        """
        column = {name: index for index, name in enumerate(self.categories)}
        columns = [[column[name] for name in group] for group in groups]
        probabilities = self.predict_proba(features)
        others = np.delete(probabilities, list(chain(*columns)), axis=1).max(axis=1, initial=0.0)
        return np.stack([*(probabilities[:, group].sum(axis=1) for group in columns), others], axis=1)


def find_classifier(network: nn.Module, trunk: FeatureNetwork) -> nn.Sequential | None:
    """Return the layers of one of torchvision's networks that follow its trunk, sharing their parameters.

    There are none that pooled features are enough for where the classifier sees positions (AlexNet, VGG), or answers
    for each position before it pools (SqueezeNet).
    """
    *_, last = network.children()
    children = list(last.children()) if isinstance(last, nn.Sequential) else [last]
    in_trunk = set(trunk.modules())
    layers = [child for child in children if child not in in_trunk]
    first = next((layer for layer in layers if any(True for _ in layer.parameters())), None)
    if isinstance(first, nn.Linear) and first.in_features == trunk.block_sizes[-1]:
        return nn.Sequential(*layers).eval()
    return None


def _as_map(layer: nn.Linear) -> LinearMap:
    weight, bias = (parameter.detach().cpu().float().numpy() for parameter in (layer.weight, layer.bias))
    return LinearMap(weight=weight.T, bias=bias)
