"""Every message between Label Studio and Tandem: models of what comes in, builders of what goes out.

Incoming messages differ between versions, endpoints and settings of Label Studio. Whatever Tandem does not need is
ignored, and one malformed part does not lose the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Self

import structlog
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
)

from backend.domain import (
    UNKNOWN_STAMP,
    Annotation,
    AnnotationsDeleted,
    AnnotationsSeen,
    Event,
    LabelSchema,
    NoSuggestion,
    ProjectIdentity,
    ProjectSeen,
    ProjectSnapshot,
    Sampling,
    Suggestion,
    Task,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.errors import InvalidRequest
from backend.label_studio.codecs import (
    decode_annotation,
    decode_task,
    encode_suggestion,
    read_label_config,
)
from backend.label_studio.fields import (
    Count,
    Flag,
    Id,
    Items,
    Lenient,
    Mapped,
    Moment,
    OneOrMany,
    Payload,
    Reference,
    RelatedId,
    Text,
    field_names,
    parse_each,
    read_json_object,
)

log = structlog.get_logger()

MAX_ACTION_CHARS = 100
MAX_IDENTITY_CHARS = 40
SAMPLINGS = {
    "Sequential sampling": Sampling.SEQUENTIAL,
    "Uniform sampling": Sampling.UNIFORM,
    "Uncertainty sampling": Sampling.UNCERTAINTY,
}


# --- nouns as Label Studio sends them --------------------------------------------------------------------------


class ProjectPayload(Payload):
    """A project in a webhook event or an answer of the API."""

    id: Id
    created_at: Lenient[Moment] = None
    title: Lenient[Text] = None
    label_config: Lenient[str] = None
    task_number: Lenient[Count] = None
    total_annotations_number: Lenient[Count] = None
    model_version: Lenient[Text] = None
    sampling: Lenient[Text] = None

    def snapshot(self) -> ProjectSnapshot:
        """Return what the payload says about the project."""
        stamp = UNKNOWN_STAMP if self.created_at is None else int(self.created_at.timestamp())
        return ProjectSnapshot(
            identity=ProjectIdentity(label_studio_id=self.id, created_stamp=stamp),
            title=self.title,
            label_config=None if self.label_config is None else read_label_config(self.label_config),
            task_count=self.task_number,
            annotation_count=self.total_annotations_number,
            model_version=self.model_version,
            sampling=SAMPLINGS.get(self.sampling or ""),
        )


class TaskPayload(Payload):
    """A task; ``annotations`` are there in answers of the API only."""

    id: Id
    data: Mapped = Field(default_factory=dict)
    annotations: Items = Field(default_factory=list)


class RegionPayload(Payload):
    """One region of an annotation's result."""

    from_name: str
    type: str
    value: Mapped = Field(default_factory=dict)


def _only_regions(value: object) -> list[RegionPayload]:
    # Regions of other control tags may lack a name or a value: no word about those.
    regions = []
    for item in value if isinstance(value, list) else []:
        try:
            regions.append(RegionPayload.model_validate(item))
        except ValidationError:
            continue
    return regions


class AnnotationPayload(Payload):
    """An annotation; ``task`` and ``completed_by`` are ids, or objects with one."""

    id: Id
    task: RelatedId
    updated_at: Moment
    result: Annotated[list[RegionPayload], BeforeValidator(_only_regions)] = Field(default_factory=list)
    was_cancelled: Flag = False
    ground_truth: Flag = False
    completed_by: Lenient[RelatedId] = None


def parse_identity(value: object) -> ProjectIdentity | None:
    """Return the identity in ``"<id>.<created, unix seconds>"``, a bare id or a project object; ``None`` without one.

    Where only the id is told, the creation time is ``UNKNOWN_STAMP``.
    """
    if isinstance(value, Mapping):
        try:
            return ProjectPayload.model_validate(value).snapshot().identity
        except ValidationError:
            return None
    text = str(value) if isinstance(value, int | str) else ""
    return _read_identity(text) if len(text) <= MAX_IDENTITY_CHARS else None


@lru_cache(maxsize=1024)
def _read_identity(text: str) -> ProjectIdentity | None:
    parts = re.fullmatch(r"([1-9][0-9]{0,17})(?:\.([0-9]{1,18}))?", text)
    if parts is None:
        return None
    return ProjectIdentity(label_studio_id=int(parts[1]), created_stamp=int(parts[2] or UNKNOWN_STAMP))


def _read_schema(project: ProjectSnapshot) -> LabelSchema | None:
    return project.label_config.schema if project.label_config else None


# --- webhook ---------------------------------------------------------------------------------------------------


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
    schema = _read_schema(project)
    if schema is None:
        return ProjectSeen(project=project) if project.label_config else None
    annotations = decode_annotations(payload.annotation or payload.annotations, schema)
    if not annotations:
        return None
    tasks = [decode_task(task, schema) for task in parse_each(TaskPayload, payload.task or payload.tasks)]
    return AnnotationsSeen(project=project, tasks=tuple(tasks), annotations=tuple(annotations))


def _tasks_seen(payload: EventPayload, project: ProjectSnapshot) -> TasksSeen | ProjectSeen | None:
    schema = _read_schema(project)
    if schema is None:
        return ProjectSeen(project=project) if project.label_config else None
    tasks = [decode_task(task, schema) for task in parse_each(TaskPayload, payload.tasks or payload.task)]
    return TasksSeen(project=project, tasks=tuple(tasks)) if tasks else None


def decode_annotations(items: Sequence[object], schema: LabelSchema) -> list[Annotation]:
    """Return the annotations that can be understood; the others are skipped with a log line."""
    return [decode_annotation(payload, schema) for payload in parse_each(AnnotationPayload, items)]


def _read_ids(items: Sequence[object]) -> tuple[int, ...]:
    return tuple(reference.id for reference in parse_each(Reference, items))


# --- setup -----------------------------------------------------------------------------------------------------


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


# --- predict ---------------------------------------------------------------------------------------------------


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
        schema = _read_schema(project)
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


# --- calls of older versions of Label Studio ---------------------------------------------------------------------


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
