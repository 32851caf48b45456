"""Makers of nouns and images for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backend.domain import (
    Annotation,
    Job,
    JobKind,
    JobStatus,
    LabelConfig,
    LabelSchema,
    Metrics,
    ModelVersion,
    ProjectIdentity,
    ProjectSnapshot,
    Task,
    VersionKind,
    VersionStatus,
)

NOON = datetime(2026, 5, 17, 12, 0, 0, tzinfo=UTC)
CLASS_NAMES = ("cat", "dog")
BASE_DIGEST = "b" * 64


def make_schema(*class_names: str, multiple: bool = False) -> LabelSchema:
    return LabelSchema(
        control_name="choice",
        object_name="image",
        data_key="image",
        class_names=class_names or CLASS_NAMES,
        multiple=multiple,
    )


def make_config(*class_names: str, multiple: bool = False) -> LabelConfig:
    return LabelConfig(schema=make_schema(*class_names, multiple=multiple))


def make_identity(label_studio_id: int = 5, created_stamp: int = 1_700_000_000) -> ProjectIdentity:
    return ProjectIdentity(label_studio_id=label_studio_id, created_stamp=created_stamp)


def make_snapshot(
    label_config: LabelConfig | None = None,
    *,
    identity: ProjectIdentity | None = None,
    title: str | None = "Pets",
    model_version: str | None = None,
) -> ProjectSnapshot:
    return ProjectSnapshot(
        identity=identity or make_identity(),
        title=title,
        label_config=label_config or make_config(),
        model_version=model_version,
    )


def image_url(name: str, number: int) -> str:
    """The address under which ``FakeImages`` serves the image of a class."""
    return f"/data/upload/5/{name}-{number}.png"


def make_task(task_id: int, name: str = "cat", *, url: str | None = None) -> Task:
    return Task(id=task_id, image_url=url or image_url(name, task_id))


def make_annotation(
    annotation_id: int,
    task_id: int,
    *class_names: str,
    updated_at: datetime = NOON,
    ground_truth: bool = False,
    annotator_id: int = 1,
) -> Annotation:
    return Annotation(
        id=annotation_id,
        task_id=task_id,
        class_names=class_names,
        updated_at=updated_at,
        ground_truth=ground_truth,
        annotator_id=annotator_id,
    )


def make_metrics(log_loss: float = 0.5) -> Metrics:
    return Metrics(
        accuracy=0.75,
        macro_precision=0.75,
        macro_recall=0.75,
        macro_f1=0.75,
        log_loss=log_loss,
        brier=0.25,
        ece=0.125,
    )


def make_version(
    number: int = 1,
    *,
    kind: VersionKind = VersionKind.HEAD,
    status: VersionStatus = VersionStatus.CANDIDATE,
    class_names: tuple[str, ...] = CLASS_NAMES,
    n_labels: int = 12,
    project_id: int = 5,
) -> ModelVersion:
    return ModelVersion(
        project_id=project_id,
        number=number,
        name=f"p{project_id}-v{number}-{number:08x}",
        kind=kind,
        status=status,
        created_at=NOON + timedelta(minutes=number),
        n_labels=n_labels,
        n_validation=n_labels,
        metrics=make_metrics(),
        class_names=class_names,
        backbone_digest=BASE_DIGEST,
        fingerprint=f"{number:064x}",
    )


def make_job(job_id: int = 1, kind: JobKind = JobKind.HEAD, *, status: JobStatus = JobStatus.RUNNING) -> Job:
    return Job(id=job_id, project_id=5, kind=kind, status=status, created_at=NOON, run_after=NOON, attempts=1)
