"""Projects, tasks and annotations as Label Studio sends them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from backend.domain import UNKNOWN_STAMP, Annotation, LabelSchema, ProjectIdentity, ProjectSnapshot, Sampling
from backend.label_studio.codecs import decode_annotation, read_label_config
from backend.label_studio.fields import (
    Count,
    Flag,
    Id,
    Items,
    Lenient,
    Mapped,
    Moment,
    Payload,
    RelatedId,
    Text,
    parse_each,
)

MAX_IDENTITY_CHARS = 40
SAMPLINGS = {
    "Sequential sampling": Sampling.SEQUENTIAL,
    "Uniform sampling": Sampling.UNIFORM,
    "Uncertainty sampling": Sampling.UNCERTAINTY,
}


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


def schema_of(project: ProjectSnapshot) -> LabelSchema | None:
    """Return what a project's labels are, ``None`` where its label config is not known or not supported."""
    return project.label_config.schema if project.label_config else None


def decode_annotations(items: Sequence[object], schema: LabelSchema) -> list[Annotation]:
    """Return the annotations that can be understood; the others are skipped with a log line."""
    return [decode_annotation(payload, schema) for payload in parse_each(AnnotationPayload, items)]
