"""Label Studio's API, and questions about our connection with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from backend.domain import AnnotatedTask, LabelSchema, ProjectSnapshot, Sampling, Suggestion, TaskView, Webhook


class LabelStudioGateway(Protocol):
    """Label Studio's API; every method raises a kind of ``LabelStudioError`` when it does not succeed.

    ``project`` arguments are Label Studio's own project ids.
    """

    @property
    def base_url(self) -> str:
        """Where Label Studio is."""

    def project(self, project: int) -> ProjectSnapshot:
        """Return a project as it is now."""

    def connected_projects(self, backend_url: str) -> list[int]:
        """Return the ids of the projects that have a backend with this URL."""

    def titles_of_others(self, project: int, backend_url: str) -> set[str]:
        """Return the titles that only backends with another URL have in a project."""

    def annotated_tasks(self, project: int, schema: LabelSchema) -> Iterator[list[AnnotatedTask]]:
        """Yield all tasks of a project page by page, with all their annotations, skipped ones included."""

    def webhooks(self, project: int) -> list[Webhook]:
        """Return a project's webhooks."""

    def create_webhook(self, project: int, url: str) -> None:
        """Create a webhook for all actions, with payload and our secret header."""

    def repair_webhook(self, project: int, webhook: Webhook) -> None:
        """Make an existing webhook active, for all actions, with payload and our secret header; other headers stay."""

    def import_predictions(self, project: int, schema: LabelSchema, suggestions: Sequence[Suggestion]) -> int:
        """Store predictions and return how many Label Studio says it made."""

    def model_versions(self, project: int) -> dict[str, int]:
        """Return how many predictions are stored under each model version."""

    def set_model_version(self, project: int, version: str) -> None:
        """Make a version the one whose predictions annotators see and sampling looks at."""

    def delete_predictions(self, project: int, version: str) -> None:
        """Delete all predictions of a version."""

    def views(self, project: int) -> list[TaskView]:
        """Return a project's views in the Data Manager, from left to right."""

    def create_view(self, project: int, title: str, task_ids: Sequence[int], *, least_sure_first: bool = True) -> int:
        """Make a view of these tasks, the least sure prediction first or the surest, and return its id.

        A project without any view gets one of all tasks before it, so that they stay in sight.
        """

    def update_view(self, project: int, view_id: int, task_ids: Sequence[int]) -> None:
        """Make a view show these tasks; its title, order, columns and the like stay."""

    def set_sampling(self, project: int, sampling: Sampling) -> None:
        """Set by what the label stream chooses the next task."""


class UrlVerdict(StrEnum):
    """What Label Studio makes of a URL of ours, without asking it."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    BLOCKED = "blocked"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStudioServer:
    """A Label Studio; ``time`` is its clock's, where it tells."""

    version: str
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedBackend:
    """A backend of a project; ``problem`` says why Label Studio could not reach it just now."""

    url: str
    title: str
    is_connected: bool
    problem: str = ""


class LabelStudioInspector(Protocol):
    """Questions to Label Studio about its connection with us; they raise a kind of ``LabelStudioError``.

    Nothing is changed. ``project`` arguments are Label Studio's own project ids.
    """

    @property
    def key_kind(self) -> str:
        """What kind of API key the settings give, in words."""

    def server(self) -> LabelStudioServer:
        """Return what is running there; no API key is needed for that."""

    def account(self) -> str:
        """Return whose API key it is."""

    def backends(self, project: int) -> list[ConnectedBackend]:
        """Return the backends of a project, each of them called by Label Studio just now."""

    def judge_backend_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would connect a backend with this URL."""

    def judge_webhook_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would make a webhook with this URL."""

    def send_event(self, project: int) -> None:
        """Make Label Studio send an event about a project: it is saved with the title that it has."""


class HealthProbe(Protocol):
    """Looks whether a Tandem answers."""

    def problem(self, base_url: str) -> str:
        """Return why no Tandem answers at a URL, nothing when one does."""
