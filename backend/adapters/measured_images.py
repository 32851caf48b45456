"""What becomes of the images that are asked for, counted."""

from __future__ import annotations

import re

from backend.errors import ImageError
from backend.measurements import Counting, image_fetches
from backend.ports import CachedImage, ImageSource

SCHEMES = ("http", "https", "data", "s3", "gs", "azure-blob")


class MeasuredImages:
    """An ``ImageSource`` that counts how another one does."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def fetch(self, image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:
        """Return the image behind the URL as it is now.

        Raises:
            ImageError: one of its kinds, with the reason.
        """
        outcome = "fetched"
        try:
            return self._source.fetch(image_url, label_studio_task_id=label_studio_task_id, timeout_s=timeout_s)
        except ImageError as error:
            outcome = _outcome(error)
            raise
        finally:
            with Counting():
                image_fetches.labels(_scheme(image_url), outcome).inc()

    def cached(self, digest: str) -> CachedImage | None:
        """Return an image from the local cache, or ``None`` when it is not there (any more)."""
        return self._source.cached(digest)


def _scheme(image_url: str) -> str:
    """Return one of a few words, whatever a task says: each becomes a time series."""
    scheme, separator, _ = image_url.strip().partition(":")
    if scheme.lower() in SCHEMES:
        return scheme.lower()
    return "other" if separator and "/" not in scheme else "label_studio"


def _outcome(error: ImageError) -> str:
    """Return the kind of an error in lower case: ``not_found``, ``forbidden``, ``unavailable`` and the like."""
    name = type(error).__name__.removeprefix("Image")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
