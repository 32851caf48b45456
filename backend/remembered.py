"""What versions suggest for images, remembered in this process: it is made of what never changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.domain import LabelSchema
    from backend.pretrained import Version
    from model.inference import Suggested

N_VERSIONS = 4
MAX_IMAGES = 32_768


class RememberedSuggestions:
    """Suggestions by version, the classes it may suggest and image digest; what was asked for last stays longest."""

    def __init__(self) -> None:
        self._suggested: OrderedDict[tuple[str, tuple[str, ...]], dict[str, Suggested]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, version: Version, schema: LabelSchema) -> dict[str, Suggested]:
        """Return what a version suggests where the classes of a schema may be, by image digest, to read and add to."""
        key = version.name, schema.class_names
        with self._lock:
            suggested = self._suggested.pop(key, {})
            if len(suggested) > MAX_IMAGES:
                suggested = {}
            self._suggested[key] = suggested
            if len(self._suggested) > N_VERSIONS:
                self._suggested.popitem(last=False)
        return suggested
