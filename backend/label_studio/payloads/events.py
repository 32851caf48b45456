"""What Label Studio tells: webhook events, and calls of older versions that say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from backend.domain import (
    AnnotationsDeleted,
    AnnotationsSeen,
    Event,
    ProjectSeen,
    ProjectSnapshot,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.label_studio.codecs import decode_task
from backend.label_studio.fields import Lenient, OneOrMany, Payload, Reference, parse_each, read_json_object
from backend.label_studio.payloads.nouns import (
    ProjectPayload,
    TaskPayload,
    decode_annotations,
    parse_identity,
    schema_of,
)

MAX_ACTION_CHARS = 100


class EventPayload(Payload):
    """A webhook event; the keys are singular or plural depending on the action, and lists or not."""

    action: Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")] = ""
    project: Lenient[ProjectPayload] = None
    annotation: OneOrMany = Field(default_factory=list)
    annotations: OneOrMany = Field(default_factory=list)
    task: OneOrMany = Field(default_factory=list)
    tasks: OneOrMany = Field(default_factory=list)


def parse_event(body: object) -> Event:
    """Return the event in the body of ``POST /webhook``, given as bytes or already parsed.

    What cannot be told from it, down to which project it is about, becomes an ``UnclearEvent``. Annotations and tasks
    of a project whose label config is not supported cannot be read: then only the project was seen.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    payload = EventPayload.model_validate(read_json_object(body))
    action = payload.action[:MAX_ACTION_CHARS]
    if payload.project is None or payload.project.created_at is None:
        return UnclearEvent(action=action)
    project = payload.project.snapshot()
    unclear = UnclearEvent(action=action, project=project)
    match action:
        case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED" | "ANNOTATIONS_CREATED":
            return _annotations_seen(payload, project) or unclear
        case "ANNOTATIONS_DELETED":
            ids = _read_ids(payload.annotations or payload.annotation)
            return AnnotationsDeleted(project=project, annotation_ids=ids) if ids else unclear
        case "TASKS_CREATED":
            return _tasks_seen(payload, project) or unclear
        case "TASKS_DELETED":
            ids = _read_ids(payload.tasks or payload.task)
            return TasksDeleted(project=project, task_ids=ids) if ids else unclear
        case "PROJECT_CREATED" | "PROJECT_UPDATED":
            return ProjectSeen(project=project)
        case "START_TRAINING":
            return TrainingRequested(project=project)
        case _:
            return unclear


def _annotations_seen(payload: EventPayload, project: ProjectSnapshot) -> AnnotationsSeen | ProjectSeen | None:
    schema = schema_of(project)
    if schema is None:
        return ProjectSeen(project=project) if project.label_config else None
    annotations = decode_annotations(payload.annotation or payload.annotations, schema)
    if not annotations:
        return None
    tasks = [decode_task(task, schema) for task in parse_each(TaskPayload, payload.task or payload.tasks)]
    return AnnotationsSeen(project=project, tasks=tuple(tasks), annotations=tuple(annotations))


def _tasks_seen(payload: EventPayload, project: ProjectSnapshot) -> TasksSeen | ProjectSeen | None:
    schema = schema_of(project)
    if schema is None:
        return ProjectSeen(project=project) if project.label_config else None
    tasks = [decode_task(task, schema) for task in parse_each(TaskPayload, payload.tasks or payload.task)]
    return TasksSeen(project=project, tasks=tuple(tasks)) if tasks else None


def _read_ids(items: Sequence[object]) -> tuple[int, ...]:
    return tuple(reference.id for reference in parse_each(Reference, items))


class _TrainPayload(Payload):
    action: object = None
    project: object = None


def parse_training_request(body: object) -> Event:
    """Return the event in the body of ``POST /train``: a webhook event, or just a project.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    payload = _TrainPayload.model_validate(read_json_object(body))
    if isinstance(payload.action, str):
        return parse_event(body)
    identity = parse_identity(payload.project)
    if identity is None:
        return UnclearEvent(action="START_TRAINING")
    return TrainingRequested(project=ProjectSnapshot(identity=identity))
