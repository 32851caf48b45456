"""Answers of Label Studio's API."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, RootModel, ValidationError

from backend.errors import LabelStudioRejected
from backend.label_studio.fields import Count, Flag, Id, Mapped, Payload, Reference, field_names
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
    title: str | None = None
    state: str = ""
    readable_state: str = "unknown"
    error_message: str | None = None


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


class VersionPayload(Payload):
    """``GET /api/version``."""

    release: str


class AccountPayload(Payload):
    """``GET /api/current-user/whoami``."""

    email: str


class RefusalPayload(Payload):
    """A refusal; ``validation_errors`` has the fields that are wrong."""

    detail: str = ""
    validation_errors: Mapped = Field(default_factory=dict)


M = TypeVar("M", bound=BaseModel)


def parse_answer(model: type[M], answer: object) -> M:
    """Return an answer as a model of it.

    Raises:
        LabelStudioRejected: it is something else.
    """
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise LabelStudioRejected(
            f"Label Studio's answer is not as expected in {field_names(error)} ({model.__name__}): Tandem is written "
            "for Label Studio 1.23",
            status=200,
        ) from None
