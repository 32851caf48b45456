"""State as files: features, and what was learned."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FeatureStore(Protocol):
    """Float16 feature rows keyed by backbone digest and image digest."""

    def append(
        self,
        backbone_digest: str,
        image_digests: Sequence[str],
        features: NDArray[np.float16],
        *,
        block_sizes: tuple[int, ...],
    ) -> None:
        """Store rows of shape (n_images, n_features) durably; images already stored are left as they are.

        ``block_sizes`` says from how many columns of which block of the backbone a row is put together.
        """

    def block_sizes(self, backbone_digest: str) -> tuple[int, ...]:
        """Return the block sizes of this backbone's rows.

        Raises:
            NotFound: nothing is stored for this backbone.
        """

    def read(self, backbone_digest: str, image_digests: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the rows found, (n_found, n_features) in the order asked, and which were found, (n_images,)."""

    def read_around(
        self, backbone_digest: str, image_digest: str, n_rows: int
    ) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and rows, (n_found, n_features), of up to ``n_rows`` images stored next to one, and its own.

        Nothing where the image has no row.
        """

    def holds(self, backbone_digest: str, image_digests: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which images have a row, (n_images,); what ``read`` would find, without reading it."""

    def count(self, backbone_digest: str) -> int:
        """Return the number of rows of this backbone."""

    def backbones(self) -> list[str]:
        """Return the digests of the backbones that something is stored for, sorted."""

    def compact(self, backbone_digest: str, keep: Collection[str]) -> int:
        """Remove the rows of all images but these and of those appended meanwhile; return how many were removed."""

    def segments(self, backbone_digest: str) -> Iterator[bytes]:
        """Yield the rows there are now in pieces that ``add_segment`` takes in again."""

    def add_segment(self, backbone_digest: str, segment: bytes) -> None:
        """Store the rows of a piece that may come from anywhere, but for those already stored.

        Raises:
            ValueError: it is no segment, or one of another backbone.
        """

    def delete(self, backbone_digest: str) -> None:
        """Remove all rows of a backbone; nothing happens when there are none."""


class ArtifactStore(Protocol):
    """Immutable folders by key, such as ``versions/p5/p5-v3-1a2b3c4d`` and ``backbones/<digest>``."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend an empty local folder that is removed at the end."""

    def publish(self, key: str, folder: Path) -> None:
        """Store a finished folder whole and durably; a key that exists already keeps its first content."""

    def fetch(self, key: str) -> Path:
        """Return a local folder with the content; read only.

        Raises:
            NotFound: nothing was published under this key.
        """

    def keys(self, prefix: str) -> list[str]:
        """Return the published keys below a prefix, sorted."""

    def delete(self, key: str) -> None:
        """Remove what was published under a key; nothing happens when there is nothing."""


class Cleanable(Protocol):
    """A folder that processes may die in while they write."""

    def clean(self) -> object:
        """Remove what processes that died left behind; what is still being written stays."""
