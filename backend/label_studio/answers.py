"""Answers of Label Studio's API."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, RootModel

from backend.label_studio.fields import Count, Flag, Id, Payload, Reference
from backend.label_studio.payloads import TaskPayload


class ProjectPage(Payload):
    """``GET /api/projects/`` with ids only."""

    results: list[Reference]
    next: str | None = None


class TaskPage(Payload):
    """``GET /api/tasks/`` with all fields."""

    tasks: list[TaskPayload]


class BackendPayload(Payload):
    """A machine learning backend of a project."""

    url: str


class WebhookPayload(Payload):
    """A webhook of a project."""

    id: Id
    url: str
    is_active: Flag = False
    send_payload: Flag = False
    send_for_all_actions: Flag = False
    headers: Annotated[dict[str, str], BeforeValidator(lambda value: value or {})] = Field(default_factory=dict)


class ModelVersionsPayload(RootModel[dict[str, Count]]):
    """How many predictions there are of each model version."""


class ImportPayload(Payload):
    """The answer to an import of predictions."""

    created: Count
