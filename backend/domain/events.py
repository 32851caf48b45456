"""What Label Studio tells us, by webhook or when asked."""

from __future__ import annotations

from dataclasses import dataclass

from backend.domain.labels import Annotation
from backend.domain.projects import ProjectSnapshot, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSeen:
    """A project was connected or changed."""

    project: ProjectSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksSeen:
    """Tasks were created, or appeared in a request."""

    project: ProjectSnapshot
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsSeen:
    """Annotations were created or changed; ``tasks`` are the tasks they belong to."""

    project: ProjectSnapshot
    tasks: tuple[Task, ...]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsDeleted:
    """Annotations were deleted; Label Studio tells their ids only."""

    project: ProjectSnapshot
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksDeleted:
    """Tasks were deleted, and their annotations with them."""

    project: ProjectSnapshot
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequested:
    """Somebody pressed Start Training, or automatic training fired."""

    project: ProjectSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UnclearEvent:
    """An event without a payload, or of an unknown action: something may have changed, reconcile."""

    action: str
    project: ProjectSnapshot | None = None


Event = ProjectSeen | TasksSeen | AnnotationsSeen | AnnotationsDeleted | TasksDeleted | TrainingRequested | UnclearEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedTask:
    """A task and all its annotations as the API tells them."""

    task: Task
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook of a Label Studio project."""

    id: int
    url: str
    is_active: bool
    sends_payload: bool
    all_actions: bool
    header_names: tuple[str, ...]
    has_our_secret: bool
