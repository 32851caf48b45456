"""Model versions: what they are called, what they score, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class VersionKind(StrEnum):
    """How a version was learned."""

    HEAD = "head"
    FINETUNE = "finetune"


class VersionStatus(StrEnum):
    """Where a version is in its life; at most one per project is active."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    REJECTED = "rejected"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a version scores on images it was not trained on; all but the losses, Brier and ECE: higher is better."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    log_loss: float
    brier: float
    ece: float


INTERRUPTED = "its training was interrupted before it was judged"
"""Why a version was rejected that may have no weights, and says nothing about what the next one will be worth."""

ROLLED_BACK = "rolled back by hand"
"""Why a version is active that somebody chose, which no version may undo before labels change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One learned model of a project; ``fingerprint`` identifies the exact labels and features it learned from."""

    project_id: int
    number: int
    name: str
    kind: VersionKind
    status: VersionStatus
    created_at: datetime
    n_labels: int
    n_validation: int
    metrics: Metrics
    class_names: tuple[str, ...]
    backbone_digest: str
    fingerprint: str
    reason: str = ""

    @property
    def was_judged(self) -> bool:
        """Whether it was decided what it is worth."""
        return self.status is not VersionStatus.CANDIDATE and self.reason != INTERRUPTED


MIN_VERSION_AGE = timedelta(days=1)
"""Nobody has had the time to miss a younger version."""


def surplus_versions(versions: Sequence[ModelVersion], n_kept: int, now: datetime) -> list[ModelVersion]:
    """Return whose files nobody will miss, of a project's versions, newest first.

    The newest ``n_kept`` of those that were rejected or retired are worth going back to; one in use or not judged yet,
    or younger than a day, always is.
    """
    ended = [each for each in versions if each.status in (VersionStatus.REJECTED, VersionStatus.RETIRED)]
    return [each for each in ended[n_kept:] if each.created_at < now - MIN_VERSION_AGE]


def finetune_labels(versions: Sequence[ModelVersion]) -> int:
    """Return with how many labels a network was fine-tuned last, 0 for never; rejected candidates count too."""
    return max((version.n_labels for version in versions if version.kind is VersionKind.FINETUNE), default=0)


def version_name(project_id: int, number: int, checkpoint_digest: str) -> str:
    """Return the string that Label Studio shows as model version."""
    return f"p{project_id}-v{number}-{checkpoint_digest[:8]}"


def untrained_name(project_id: int) -> str:
    """Return what Label Studio is told before there is a version: it insists on a non-empty string."""
    return f"p{project_id}-v0-untrained"
