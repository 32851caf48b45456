"""What a backbone was pretrained to say of a project's classes, and how much of that to believe.

Where classes are called like categories that a backbone was pretrained to tell apart, its own classifier has an opinion
of every image. It learned from far more images than a project has labels, though it may mean something else by a name.
So a head and the opinion are pooled: the mean of their log probabilities counts, of which labels say how much is whose
(a logarithmic opinion pool; Genest and Zidek: "Combining Probability Distributions", 1986).

numpy only, for the web process pools too. Shapes: n images, d features, k classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.evaluation import Targets
from model.head import AnyFloats, FloatArray
from model.logits import Floats, LinearMap, log_softmax

LAYERS_FILE = "layers.safetensors"
CATEGORIES_FILE = "categories.json"
SHARES = np.linspace(0.0, 1.0, 21)


class CorruptClassifier(Exception):
    """A stored classifier that is incomplete, was altered, or was never one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opinion:
    """The part of a pretrained classifier that tells a project's classes apart.

    ``layers`` take the last features of a row, with hard swish between them; ``groups`` has for each class its columns
    of what the last one gives.
    """

    layers: tuple[LinearMap, ...]
    groups: tuple[tuple[int, ...], ...]

    def log_probabilities(self, features: AnyFloats) -> FloatArray:
        """Return the log probability of each class, (n, k), given that an image is of one of them."""
        rows: FloatArray = features[:, -len(self.layers[0].weight) :].astype(np.float32)
        for layer in self.layers[:-1]:
            rows = _hard_swish(layer.logits(rows))
        logits = self.layers[-1].logits(rows)
        of_classes = [np.logaddexp.reduce(logits[:, list(group)], axis=1) for group in self.groups]
        return log_softmax(np.stack(of_classes, axis=1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PretrainedLayers:
    """A pretrained classifier, from the last features of a row to one logit for each of ``categories``."""

    layers: tuple[LinearMap, ...]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse layers that do not fit together."""
        sizes = [len(layer.weight) for layer in self.layers[1:]] + [len(self.categories)]
        shapes = [(layer.weight.shape[1:], layer.bias.shape) for layer in self.layers]
        if not self.layers or shapes != [((size,), (size,)) for size in sizes]:
            raise ValueError(f"layers of shapes {shapes} do not lead to {len(self.categories)} categories")

    def opinion(self, names: Sequence[Sequence[str]]) -> Opinion:
        """Return its opinion of classes, given the names of the categories that mean each of them.

        Raises:
            KeyError: there is no category of that name.
        """
        column = {name: index for index, name in enumerate(self.categories)}
        columns = [column[name] for name in chain(*names)]
        *hidden, last = self.layers
        stops = np.cumsum([len(group) for group in names]).tolist()
        return Opinion(
            layers=(*hidden, LinearMap(weight=last.weight[:, columns], bias=last.bias[columns])),
            groups=tuple(tuple(range(stop - len(group), stop)) for stop, group in zip(stops, names, strict=True)),
        )

    def write(self, folder: Path) -> None:
        """Write it into an existing folder, in half the precision that it has: features have no more either."""
        arrays = {name: array.astype(np.float16) for name, array in layer_arrays(self.layers).items()}
        save_file(arrays, folder / LAYERS_FILE)
        (folder / CATEGORIES_FILE).write_text(json.dumps(self.categories), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> PretrainedLayers:
        """Read what ``write`` wrote.

        Raises:
            CorruptClassifier: it is something else.
        """
        try:
            arrays = {name: array.astype(np.float32) for name, array in load_file(folder / LAYERS_FILE).items()}
            categories = json.loads((folder / CATEGORIES_FILE).read_text(encoding="utf-8"))
            return cls(layers=layers_from(arrays), categories=tuple(map(str, categories)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CorruptClassifier(f"the classifier in {folder.name} cannot be read: {error!r}") from error


def fit_share(probabilities: FloatArray, opinions: FloatArray, targets: Targets) -> float:
    """Return how much the opinion counts against the head, from 0 to 1.

    It is the posterior mean under a prior by which every share is as likely as any other: one half without images, and
    near whatever makes the labels likeliest with many.

    Args:
        probabilities: a head's, (n, k), of images that it was not fitted on.
        opinions: log probabilities, (n, k), of the same images.
        targets: their class indices, (n,).
    """
    of_head, right = np.log(probabilities), (np.arange(len(targets)), targets)
    likelihoods = np.array([pooled_with(of_head, opinions, share)[right].sum(dtype=np.float64) for share in SHARES])
    weights = np.exp(likelihoods - likelihoods.max())
    return float(SHARES @ weights / weights.sum())


def pooled_with(of_head: NDArray[Floats], opinions: NDArray[Floats], share: float) -> NDArray[Floats]:
    """Return pooled log probabilities, (n, k), from a head's, up to a constant in each row, and an opinion's."""
    return log_softmax((1 - share) * of_head + share * opinions)


def layer_arrays(layers: Sequence[LinearMap]) -> dict[str, FloatArray]:
    """Return layers as arrays by name."""
    numbered = list(enumerate(layers))
    weights = {f"weight_{index}": np.ascontiguousarray(layer.weight) for index, layer in numbered}
    return weights | {f"bias_{index}": np.ascontiguousarray(layer.bias) for index, layer in numbered}


def layers_from(arrays: dict[str, FloatArray]) -> tuple[LinearMap, ...]:
    """Return the layers that ``layer_arrays`` made arrays of."""
    return tuple(
        LinearMap(weight=arrays[f"weight_{index}"], bias=arrays[f"bias_{index}"]) for index in range(len(arrays) // 2)
    )


def _hard_swish(values: FloatArray) -> FloatArray:
    """Return x * min(max(x + 3, 0), 6) / 6, of any shape (Howard et al.: "Searching for MobileNetV3", 2019)."""
    gates: FloatArray = np.clip(values + 3, 0, 6)
    return values * (gates / np.float32(6))
