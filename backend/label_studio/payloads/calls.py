"""What Label Studio asks for, and what it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import structlog
from pydantic import Field, ValidationError

from backend.domain import LabelSchema, NoSuggestion, ProjectSnapshot, Suggestion, Task
from backend.errors import InvalidRequest
from backend.label_studio.codecs import decode_task, encode_suggestion, read_label_config
from backend.label_studio.fields import Id, Lenient, Payload, field_names, read_json_object
from backend.label_studio.payloads.nouns import TaskPayload, parse_identity, schema_of

log = structlog.get_logger()


class SetupRequest(Payload):
    """``POST /setup``; the access token in it is somebody's, so there is no field for it to end up in."""

    project: object = None
    label_config: Lenient[str] = Field(None, alias="schema")

    @classmethod
    def parse(cls, body: object) -> ProjectSnapshot:
        """Return the project that the body, bytes or already parsed, is about.

        Raises:
            InvalidRequest: the body is not a JSON object, or does not say which project it is about.
        """
        payload = cls.model_validate(read_json_object(body))
        return _identified(payload.project, payload.label_config)


def _identified(project: object, label_config: str | None) -> ProjectSnapshot:
    identity = parse_identity(project)
    if identity is None:
        raise InvalidRequest(
            'the body does not say which project it is about: "project" should be a string like "5.1795460391"',
            field="project",
        )
    config = None if label_config is None else read_label_config(label_config)
    return ProjectSnapshot(identity=identity, label_config=config)


def encode_setup_response(version: str) -> dict[str, str]:
    """Return the answer to ``POST /setup``; Label Studio asks again for tasks without a prediction of this version."""
    return {"model_version": version}


def encode_versions(versions: Sequence[str]) -> dict[str, list[str]]:
    """Return the answer to ``/versions``."""
    return {"versions": list(versions)}


class _PredictParams(Payload):
    context: Lenient[dict[str, object]] = None


class _PredictPayload(Payload):
    project: object = None
    label_config: Lenient[str] = None
    tasks: list[object]
    params: Lenient[_PredictParams] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """``POST /predict``: one task per task asked for, in order.

    A task that cannot be understood keeps its place, without image and, when it is the id that is wrong, with a
    negative one. ``is_interactive`` requests come from smart annotation: their results are shown, not stored.
    """

    project: ProjectSnapshot
    tasks: tuple[Task, ...]
    is_interactive: bool

    @classmethod
    def parse(cls, body: object) -> Self:
        """Return the request in a body, given as bytes or already parsed.

        Raises:
            InvalidRequest: the body is not a JSON object, has no list of tasks, or does not say which project it is
                about.
        """
        try:
            payload = _PredictPayload.model_validate(read_json_object(body))
        except ValidationError:
            raise InvalidRequest('"tasks" should be a list of tasks', field="tasks") from None
        project = _identified(payload.project, payload.label_config)
        schema = schema_of(project)
        return cls(
            project=project,
            tasks=tuple(_read_task(item, position, schema) for position, item in enumerate(payload.tasks)),
            is_interactive=payload.params is not None and payload.params.context is not None,
        )


def _read_task(item: object, position: int, schema: LabelSchema | None) -> Task:
    try:
        payload = TaskPayload.model_validate(item)
    except ValidationError as error:
        log.warning("task asked for is malformed", position=position, fields=field_names(error))
        return Task(id=-1 - position, image_url=None)
    return decode_task(payload, schema) if schema else Task(id=payload.id, image_url=None)


def encode_predict_response(
    results: Sequence[Suggestion | NoSuggestion], schema: LabelSchema | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the answer to ``POST /predict``: an entry per task asked for, in order, empty where nothing is known."""
    return {
        "results": [
            encode_suggestion(result, schema) if schema and isinstance(result, Suggestion) else {} for result in results
        ]
    }


class JobStatusRequest(Payload):
    """``POST /job_status``."""

    job: Lenient[Id] = None

    @classmethod
    def parse(cls, body: object) -> int | None:
        """Return the id of the job asked for, ``None`` when it cannot be one of ours.

        Raises:
            InvalidRequest: the body is not a JSON object.
        """
        return cls.model_validate(read_json_object(body)).job
