"""Which images are kept from learning together, so that they can judge what the others taught.

An image's fold comes from a hash of its content, so that no image is ever trained on by one version and used to judge
another. Near-duplicates share a fold, that of the member whose digest comes first: else an image would be judged by
what its double taught. So a fold changes when a near-duplicate arrives whose digest comes before, and when images or
labels that arrive shift what counts as one.

Where most images of a class look the same, later ones will too: to hold them all out would judge a class that was never
learned. Such a group does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.duplicates import MAX_IMAGES, coordinates_of, duplicate_groups
from model.evaluation import Targets
from model.head import AnyFloats, FloatArray

N_FOLDS = 5
JUDGING_FOLD = 0
"""No network is ever fine-tuned on it."""
EARLY_STOPPING_FOLD = 1
"""Decides when to stop a fine-tuning."""
SPLIT_FILE = "split.json"
LARGEST_SHARE_OF_CLASS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSplit:
    """Which labelled images a network was fine-tuned on, and which were held out; kept beside its weights."""

    seen: frozenset[str]
    held_out: frozenset[str]

    @classmethod
    def of(cls, digests: Sequence[str], folds: NDArray[np.intp]) -> NetworkSplit:
        """Split by folds, (n,)."""
        held_out = frozenset(digest for digest, fold in zip(digests, folds, strict=True) if fold == JUDGING_FOLD)
        return cls(seen=frozenset(digests) - held_out, held_out=held_out)

    def write(self, folder: Path) -> None:
        """Write it into the folder of a backbone."""
        content = {"seen": sorted(self.seen), "held_out": sorted(self.held_out)}
        (folder / SPLIT_FILE).write_text(json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> NetworkSplit:
        """Read it from the folder of a backbone."""
        content = json.loads((folder / SPLIT_FILE).read_text())
        return cls(seen=frozenset(content["seen"]), held_out=frozenset(content["held_out"]))

    def may_judge(self, digest: str) -> bool:
        """Tell whether an image can judge the network, be it labelled then or later."""
        return digest in self.held_out or (digest not in self.seen and fold_of(digest) == JUDGING_FOLD)


def fold_of(image_digest: str, n_folds: int = N_FOLDS) -> int:
    """Return the fold, 0 to ``n_folds`` - 1, of an image alone: from a hash of its content digest, fixed for ever."""
    return int.from_bytes(hashlib.sha256(image_digest.encode()).digest()[:8], "big") % n_folds


def fold_groups(
    digests: Sequence[str], features: AnyFloats, targets: Targets, block_sizes: tuple[int, ...]
) -> NDArray[np.intp]:
    """Return the fold of each labelled image, (n,), near-duplicates together.

    Args:
        digests: of the images' content.
        features: (n, d), of a backbone that was not fine-tuned on them.
        targets: class indices, (n,), or booleans, (n, k), where an image may have several classes.
        block_sizes: how a feature row is composed.
    """
    first = first_digests(digests, coordinates_of(features, block_sizes), targets)
    return np.array([fold_of(digest) for digest in first], np.intp)


def first_digests(digests: Sequence[str], coordinates: FloatArray, targets: Targets) -> list[str]:
    """Return for each image the digest that comes first among its near-duplicates, by coordinates, (n, p).

    It is the image's own where there are more than ``MAX_IMAGES``, and in a group of more than
    ``LARGEST_SHARE_OF_CLASS`` of the images of the largest class that occurs in it.
    """
    if len(digests) > MAX_IMAGES:
        return list(digests)
    groups = duplicate_groups(coordinates)
    class_sizes = np.zeros(len(groups), np.intp)
    np.maximum.at(class_sizes, groups, _class_sizes(targets))
    counts = np.bincount(groups, minlength=len(groups)) <= LARGEST_SHARE_OF_CLASS * class_sizes
    members = list(zip(groups.tolist(), digests, strict=True))
    first = dict(sorted(members, reverse=True))
    return [first[group] if counts[group] else digest for group, digest in members]


def _class_sizes(targets: Targets) -> NDArray[np.intp]:
    """Return the size of each image's largest class, (n,): no class at all is one too."""
    if targets.ndim == 1:
        return np.bincount(targets)[targets]
    memberships = np.column_stack([targets, ~targets.any(axis=1)])
    sizes: NDArray[np.intp] = (memberships * memberships.sum(axis=0)).max(axis=1)
    return sizes
