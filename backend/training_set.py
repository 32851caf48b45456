"""What there is to learn from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from backend.domain import (
    LabelCounts,
    LabelledImage,
    LabelSchema,
    ModelVersion,
    Project,
    TrainingPolicy,
    VersionStatus,
    agreed_labels,
    finetune_labels,
)
from backend.errors import TrainingImpossible
from backend.ports import Database

MAX_POOL_IMAGES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """What there is to learn from at one moment.

    ``agreed`` are all labels that tasks agree on; ``labelled`` those of them that can be learned from, because their
    images can be had; ``pool`` are digests of images without a label; ``versions`` those that say what comes next.
    """

    project: Project
    schema: LabelSchema
    versions: tuple[ModelVersion, ...]
    agreed: tuple[LabelledImage, ...]
    labelled: tuple[LabelledImage, ...]
    pool: tuple[str, ...]
    counts: LabelCounts

    @property
    def active(self) -> ModelVersion | None:
        """The active version, if any."""
        return next((version for version in self.versions if version.status is VersionStatus.ACTIVE), None)

    @property
    def newest_judged(self) -> ModelVersion | None:
        """The newest version of which was decided what it is worth, if any."""
        return next((version for version in self.versions if version.was_judged), None)

    def fingerprint(self, backbone_digest: str) -> str:
        """Identify what a head would learn from: labels, classes, features, and how large the pool is, roughly."""
        labels = [(image.task_id, image.image_digest, image.class_names) for image in self.labelled]
        content = (backbone_digest, self.schema.class_names, self.schema.multiple, labels, len(self.pool).bit_length())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_training_set(database: Database, policy: TrainingPolicy, project_id: int) -> TrainingSet:
    """Return what there is to learn from.

    Raises:
        TrainingImpossible: the label config is not supported, or there are too few labels or classes.
    """
    with database.snapshot() as stores:
        project = stores.projects.get(project_id)
        if project.schema is None:
            raise TrainingImpossible(project.label_config.problem or "the label config is not known yet")
        tasks = stores.tasks.all(project_id)
        labels = agreed_labels(stores.annotations.all(project_id), project.schema)
        versions = tuple(stores.versions.landmarks(project_id))
    images = {task.id: task.image_digest for task in tasks if task.image_digest}
    labelled = tuple(
        LabelledImage(task_id=task_id, image_digest=images[task_id], class_names=label)
        for task_id, label in labels.items()
        if task_id in images
    )
    known = {image.image_digest for image in labelled}
    counts = LabelCounts(
        n_labels=len(labels),
        n_classes=len({name for label in labels.values() for name in label}),
        n_embedded_labels=sum(task.id in labels for task in tasks if task.backbone_digest),
        n_finetune_labels=finetune_labels(versions),
    )
    decision = policy.decide(counts, project.schema)
    if decision.next is None:
        raise TrainingImpossible(decision.reason)
    return TrainingSet(
        project=project,
        schema=project.schema,
        versions=versions,
        agreed=labelled,
        labelled=labelled,
        pool=tuple(sorted(set(images.values()) - known))[:MAX_POOL_IMAGES],
        counts=counts,
    )
