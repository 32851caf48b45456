"""Images come in and become features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.reports import EmbeddingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """The bytes of an image on local disk; ``digest`` is their SHA-256 in hex."""

    digest: str
    path: Path


class ImageSource(Protocol):
    """Brings images in, within limits of time, size and origin."""

    def fetch(self, image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:
        """Return the image behind the URL as it is now.

        Raises:
            ImageError: one of its kinds, with the reason.
        """

    def cached(self, digest: str) -> CachedImage | None:
        """Return an image from the local cache, or ``None`` when it is not there (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Features of some images.

    ``features`` has a row for each image that could be read, made of ``block_sizes`` columns of each block;
    ``problems`` maps the index of each other image to the reason.
    """

    backbone_digest: str
    block_sizes: tuple[int, ...]
    features: NDArray[np.float16]
    problems: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderBackbone:
    """A backbone by its digest; ``categories`` are what the classifier it was pretrained with tells apart, if any.

    ``note`` is what a user should know about it, in plain words; often nothing.
    """

    digest: str
    categories: tuple[str, ...] = ()
    note: str = ""


class Embedder(Protocol):
    """Turns images into features, and features into what the pretrained classifier sees in them."""

    def base(self) -> EmbedderBackbone:
        """Return the pretrained backbone that the settings name.

        Raises:
            EmbedderUnavailable: it is not up (yet).
        """

    def settings(self, backbone_digest: str) -> EmbeddingSettings:
        """Return how features of a backbone are computed now.

        Raises:
            EmbedderUnavailable: it is not up (yet), or does not run that backbone at the moment.
        """

    def embed(
        self,
        paths: Sequence[Path],
        *,
        backbone_digest: str | None = None,
        urgent: bool = False,
        timeout_s: float | None = None,
    ) -> Embedding:
        """Embed image files with the pretrained backbone, or with a fine-tuned one named by its digest.

        ``urgent`` requests overtake background ones.

        Raises:
            EmbedderUnavailable: it is not up (yet), ended while at work, or took longer than ``timeout_s``.
        """

    def classify(
        self, features: NDArray[np.float16], groups: Sequence[Sequence[str]], *, backbone_digest: str
    ) -> NDArray[np.float32]:
        """Return how probable each group of categories is, (n_images, n_groups + 1), by feature rows of that backbone.

        The last column is the most probable category outside of all groups, 0 where none is.

        Raises:
            EmbedderUnavailable: it is not up (yet), or does not run that backbone or know those categories (any more).
        """
