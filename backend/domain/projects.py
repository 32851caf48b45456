"""Projects and tasks of Label Studio, as messages tell of them and as Tandem knows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from backend.domain.labels import LabelConfig, LabelSchema

UNKNOWN_STAMP = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectIdentity:
    """Which project a message is about.

    Ids may be used again, so the creation time in unix seconds belongs to it; ``UNKNOWN_STAMP`` where a message
    does not tell it, which then means the newest project with that id.
    """

    label_studio_id: int
    created_stamp: int


class Sampling(StrEnum):
    """By what Label Studio's label stream chooses the next task."""

    SEQUENTIAL = "sequential"
    UNIFORM = "uniform"
    UNCERTAINTY = "uncertainty"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSnapshot:
    """What one message or API answer says about a project; ``None`` where it says nothing."""

    identity: ProjectIdentity
    title: str | None = None
    label_config: LabelConfig | None = None
    task_count: int | None = None
    annotation_count: int | None = None
    model_version: str | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A Label Studio project as Tandem knows it.

    ``id`` is what people, scripts and version names use: Label Studio's own id, unless another project
    (an older one, or another server's) already has it. ``backbone_digest`` names the features that head
    versions of this project are fitted on; ``problems`` are faults of the connection, in plain words.
    """

    id: int
    identity: ProjectIdentity
    title: str = ""
    label_config: LabelConfig = LabelConfig()  # noqa: RUF009 - frozen
    backbone_digest: str | None = None
    pushed_version: str | None = None
    problems: tuple[str, ...] = ()
    event_at: datetime | None = None
    predict_at: datetime | None = None
    synced_at: datetime | None = None

    @property
    def schema(self) -> LabelSchema | None:
        """The schema in use, or ``None`` while the label config is unknown or unsupported."""
        return self.label_config.schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A Label Studio task with one image.

    ``image_digest`` is the SHA-256 of the image's bytes once they were fetched, ``image_problem`` why they
    could not be; ``backbone_digest`` names the features stored for the image; ``pushed_version`` the model version
    whose suggestion Label Studio holds; ``drawn_at_random`` says that chance alone chose it to be labelled.
    """

    id: int
    image_url: str | None
    image_digest: str | None = None
    image_problem: str | None = None
    backbone_digest: str | None = None
    pushed_version: str | None = None
    drawn_at_random: bool = False
