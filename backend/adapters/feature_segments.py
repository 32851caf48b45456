"""Feature rows as one piece that can be stored elsewhere and taken in again: a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from backend.adapters.feature_keys import KEY_BYTES, Keys, is_first, to_keys
from backend.adapters.feature_rows import Features

MAX_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows of one backbone: ``keys`` (n_images, 32), ``features`` (n_images, n_features)."""

    keys: Keys
    features: Features
    block_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            ValueError: saying what.
        """
        shape = (len(self.keys), sum(self.block_sizes))
        if self.features.dtype != np.float16 or self.features.shape != shape:
            raise ValueError(
                f"features of {len(self.keys)} images in blocks of {self.block_sizes} are float16 of shape {shape}; "
                f"got {self.features.dtype} of shape {self.features.shape}"
            )

    @classmethod
    def of_images(cls, image_digests: Sequence[str], features: Features, block_sizes: tuple[int, ...]) -> Segment:
        """Return rows of images by their digests in hex.

        Raises:
            ValueError: a malformed digest, or rows whose number, width or type does not fit.
        """
        return cls(keys=to_keys(image_digests), features=features, block_sizes=block_sizes)

    @classmethod
    def from_bytes(cls, content: bytes) -> Segment:
        """Read a file that may come from anywhere.

        Raises:
            ValueError: it is no segment.
        """
        try:
            tensors = load(content)
            keys, features, blocks = tensors["keys"], tensors["features"], tensors["block_sizes"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"not a segment of features: {error}") from error
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES or blocks.dtype != np.int64:
            raise ValueError(f"not a segment of features: keys are {keys.dtype} of shape {keys.shape}")
        block_sizes = tuple(int(size) for size in blocks.reshape(-1))
        if not block_sizes or min(block_sizes) <= 0:
            raise ValueError(f"not a segment of features: it has blocks of {block_sizes}")
        return cls(keys=keys, features=features, block_sizes=block_sizes)

    def to_bytes(self) -> bytes:
        """Return the file."""
        blocks = np.array(self.block_sizes, np.int64)
        # A view of mapped files, or of some rows, becomes an array of its own: safetensors writes no others.
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.array(self.keys),
            "features": np.array(self.features),
            "block_sizes": blocks,
        }
        content: bytes = save(tensors)
        return content

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


def merge(segments: Sequence[Segment]) -> Segment:
    """Return the rows of several segments, each image once.

    Raises:
        ValueError: they are of different backbones.
    """
    if len({segment.block_sizes for segment in segments}) != 1:
        raise ValueError(f"segments have blocks of {sorted({segment.block_sizes for segment in segments})}")
    keys = np.concatenate([segment.keys for segment in segments])
    features = np.concatenate([segment.features for segment in segments])
    first = is_first(keys)
    return Segment(keys=keys[first], features=features[first], block_sizes=segments[0].block_sizes)
