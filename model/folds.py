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
from collections.abc import Mapping, Sequence
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
    """Which images a network was fine-tuned on, and which may judge it; kept beside its weights.

    Settled when the network is trained, for images without a label, too: features that it gives tell no doubles, and
    images that come later get no others. One of these may be the double of an image that was seen, so it never judges.

    Attributes:
        seen: images that it was fine-tuned on, or that decided when to stop.
        held_out: the group, see ``groups_of``, of each image that may judge, be it labelled then or later.
    """

    seen: frozenset[str]
    held_out: Mapping[str, str]

    @classmethod
    def of(cls, digests: Sequence[str], groups: Mapping[str, str]) -> NetworkSplit:
        """Split labelled images, and those without a label that they were compared with, by their groups."""
        held_out = {digest: group for digest, group in groups.items() if fold_of(group) == JUDGING_FOLD}
        return cls(seen=frozenset(digests) - held_out.keys(), held_out=held_out)

    def write(self, folder: Path) -> None:
        """Write it into the folder of a backbone."""
        doubles = {digest: group for digest, group in sorted(self.held_out.items()) if group != digest}
        content = {"seen": sorted(self.seen), "held_out": sorted(self.held_out), "doubles": doubles}
        (folder / SPLIT_FILE).write_text(json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> NetworkSplit:
        """Read it from the folder of a backbone; the first ones that were written know no doubles."""
        content = json.loads((folder / SPLIT_FILE).read_text())
        held_out = {digest: digest for digest in content["held_out"]} | content.get("doubles", {})
        return cls(seen=frozenset(content["seen"]), held_out=held_out)


def fold_of(image_digest: str, n_folds: int = N_FOLDS) -> int:
    """Return the fold, 0 to ``n_folds`` - 1, of an image alone: from a hash of its content digest, fixed for ever."""
    return int.from_bytes(hashlib.sha256(image_digest.encode()).digest()[:8], "big") % n_folds


def folds_of(digests: Sequence[str], groups: Mapping[str, str]) -> NDArray[np.intp]:
    """Return the fold of each image, (n,), that of its group."""
    return np.array([fold_of(groups[digest]) for digest in digests], np.intp)


def groups_of(
    digests: Sequence[str], features: AnyFloats, targets: Targets, block_sizes: tuple[int, ...]
) -> dict[str, str]:
    """Return the group of each image, near-duplicates together: the digest that comes first in it.

    Args:
        digests: of the images' content, those with a label first.
        features: (n, d), of a backbone that was not fine-tuned on them.
        targets: of the labelled images: class indices, (n labelled,), or booleans, (n labelled, k), where an image may
            have several classes.
        block_sizes: how a feature row is composed.
    """
    return dict(zip(digests, first_digests(digests, coordinates_of(features, block_sizes), targets), strict=True))


def held_out(
    digests: Sequence[str], features: AnyFloats, targets: Targets, block_sizes: tuple[int, ...], share: float
) -> NDArray[np.bool_]:
    """Draw the test images, (n,), by their content: the same ones every time, of each class its share.

    Near-duplicates stay together. Where an image may have several classes, it is sets of classes that have their
    share, as far as there are enough images.

    Args:
        digests: of the images' content.
        features: (n, d), of a backbone that was not fine-tuned on them.
        targets: class indices, (n,), or booleans, (n, k).
        block_sizes: how a feature row is composed.
        share: of the images to hold out, above 0 and below 1.
    """
    rows = np.argsort(np.array(digests))  # so that names and order of the files do not matter
    ordered = [digests[row] for row in rows]
    first = first_digests(ordered, coordinates_of(features[rows], block_sizes), targets[rows])
    labels = np.unique(targets, axis=0, return_inverse=True)[1].tolist()
    groups: dict[str, list[int]] = {}
    for row, group in zip(rows.tolist(), first, strict=True):
        groups.setdefault(group, []).append(row)
    drawn = np.zeros(len(digests), np.bool_)
    n_seen = n_drawn = 0
    for members in sorted(groups.values(), key=lambda members: (labels[members[0]], digests[members[0]])):
        n_seen += len(members)
        # What is missing from the share so far, or too much, is carried over to the next group.
        if share * n_seen - n_drawn >= len(members) / 2:
            drawn[members] = True
            n_drawn += len(members)
    return drawn


def first_digests(digests: Sequence[str], coordinates: FloatArray, targets: Targets) -> list[str]:
    """Return for each image the digest that comes first among its near-duplicates, by coordinates, (n, p).

    It is the image's own where there are more than ``MAX_IMAGES``, and in a group with more than
    ``LARGEST_SHARE_OF_CLASS`` of the images of the largest class that occurs in it. Images beyond the targets, (m,) or
    (m, k) with m <= n, have no label.
    """
    if len(digests) > MAX_IMAGES:
        return list(digests)
    groups = duplicate_groups(coordinates)
    labelled = groups[: len(targets)]
    class_sizes = np.zeros(len(groups), np.intp)
    np.maximum.at(class_sizes, labelled, _class_sizes(targets))
    counts = np.bincount(labelled, minlength=len(groups)) <= LARGEST_SHARE_OF_CLASS * class_sizes
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
