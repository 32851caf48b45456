"""What annotators are shown: suggestions, and views of tasks in the Data Manager."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A pre-annotation; ``score`` is the calibrated probability, 0 to 1, that all of it is right."""

    task_id: int
    class_names: tuple[str, ...]
    score: float
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSuggestion:
    """Why a task gets no suggestion."""

    task_id: int
    reason: str


class ViewKind(StrEnum):
    """The views that Tandem keeps in Label Studio's Data Manager."""

    LABEL_NEXT = "label_next"
    CHECK_LABELS = "check_labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A view of Label Studio's Data Manager: a tab.

    ``task_ids`` are the tasks that it is filtered to; ``None`` where it is filtered by anything else, or not at all.
    """

    id: int
    title: str
    task_ids: frozenset[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptView:
    """A view that Tandem made.

    It shows ``task_ids``, or still ``previous_task_ids`` where the last change did not come through. ``released``
    once somebody changed or deleted it by hand: then it is theirs.
    """

    kind: ViewKind
    label_studio_id: int
    task_ids: frozenset[int]
    previous_task_ids: frozenset[int] = frozenset()
    released: bool = False

    def is_as_left(self, view: TaskView | None) -> bool:
        """Tell whether a view, as Label Studio has it now, is as Tandem left it."""
        return view is not None and view.task_ids in (self.task_ids, self.previous_task_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """Which suggestions annotators see, so that bad ones do not lead them, and some images are labelled without any.

    Attributes:
        min_accuracy: what a version must reach before any of its suggestions is shown.
        audit_share: of all images, from 0 to 1, those whose suggestion is never shown: labels that nobody was led to.
    """

    min_accuracy: float = 0.0
    audit_share: float = 0.0

    def shows(self, accuracy: float, image_url: str | None) -> bool:
        """Tell whether the suggestion of a version that accurate is shown for an image; audited ones stay the same."""
        if accuracy < self.min_accuracy:
            return False
        if self.audit_share <= 0:
            return True
        draw = int.from_bytes(hashlib.sha256((image_url or "").encode()).digest()[:8], "big") / 2**64
        return draw >= self.audit_share
