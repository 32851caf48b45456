"""What the active version scores on the images that judge a candidate, so that both are compared on equal terms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backend.domain import Comparison, LabelledImage, LabelSchema, Metrics, ModelVersion
from backend.ports import ArtifactStore, FeatureStore
from model.checkpoint import load_out_of_fold, load_predictor
from model.evaluation import Report, compare
from model.learned import OutOfFold
from model.logits import Floats

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS_FILE = "labels.json"


def version_key(project_id: int, name: str) -> str:
    """Return the key of a version in the artifact store."""
    return f"versions/p{project_id}/{name}"


def backbone_key(digest: str) -> str:
    """Return the key of a fine-tuned backbone in the artifact store."""
    return f"backbones/{digest}"


def training_state_name(project_id: int) -> str:
    """Return the name of the folder in which a project's fine-tuning keeps what it would go on from."""
    return f"p{project_id}"


def classifier_key(digest: str) -> str:
    """Return the key of the classifier that a backbone was pretrained with, in the artifact store."""
    return f"classifiers/{digest}"


def targets_of(labelled: Sequence[LabelledImage], schema: LabelSchema) -> NDArray[np.int64] | NDArray[np.bool_]:
    """Return class indices, shape (n,), or with several classes per image booleans, shape (n, k)."""
    columns = {name: column for column, name in enumerate(schema.class_names)}
    if not schema.multiple:
        return np.array([columns[image.class_names[0]] for image in labelled], dtype=np.int64)
    targets = np.zeros((len(labelled), len(columns)), dtype=bool)
    for row, image in enumerate(labelled):
        targets[row, [columns[name] for name in image.class_names]] = True
    return targets


def metrics_of(report: Report) -> Metrics:
    """Return the part of a report that versions show."""
    return Metrics(
        accuracy=report.accuracy,
        macro_precision=report.macro_precision,
        macro_recall=report.macro_recall,
        macro_f1=report.macro_f1,
        log_loss=report.log_loss,
        brier=report.brier,
        ece=report.ece,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLabels:
    """The labels that a version learned from, kept beside its weights."""

    labelled: tuple[LabelledImage, ...]

    @property
    def snapshot(self) -> str:
        """SHA-256, in hex, of images and labels alone: whichever tasks they belong to, in whatever order."""
        rows = sorted((image.image_digest, sorted(image.class_names)) for image in self.labelled)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write them into the folder of a version."""
        rows = [[image.task_id, image.image_digest, image.class_names] for image in self.labelled]
        (folder / LABELS_FILE).write_text(json.dumps(rows))

    @classmethod
    def read(cls, folder: Path) -> TrainedLabels:
        """Read them from the folder of a version."""
        rows = json.loads((folder / LABELS_FILE).read_text())
        return cls(
            labelled=tuple(
                LabelledImage(task_id=task_id, image_digest=digest, class_names=tuple(class_names))
                for task_id, digest, class_names in rows
            )
        )

    def count_withdrawn(self, labelled: Sequence[LabelledImage]) -> int:
        """Return how many of these labels are no longer given, or given otherwise."""
        return len(set(self.labelled) - set(labelled))


def compare_by_image(
    candidate: OutOfFold, active: OutOfFold, labelled: Sequence[LabelledImage], schema: LabelSchema
) -> Comparison:
    """Compare a candidate with an active version on the images that both were judged on."""
    known = dict(zip(active.digests, active.probabilities, strict=True))
    rows = [row for row, digest in enumerate(candidate.digests) if digest in known]
    label_of = {image.image_digest: image for image in labelled}
    judged = np.array([known[candidate.digests[row]] for row in rows], np.float32)
    result = compare(
        candidate.probabilities[rows],
        judged.reshape(len(rows), len(schema.class_names)),
        targets_of([label_of[candidate.digests[row]] for row in rows], schema),
        schema.multiple,
    )
    return Comparison(
        n_images=result.n_images,
        log_loss_difference=result.log_loss_difference,
        standard_error=result.standard_error,
        accuracy_difference=result.accuracy_difference,
    )


class ActiveVersion:
    """The active version as a judge's second party."""

    def __init__(self, version: ModelVersion, artifacts: ArtifactStore, features: FeatureStore) -> None:
        """Load the version.

        Raises:
            CorruptCheckpoint: it was altered or is incomplete.
            NotFound: it is gone.
        """
        folder = artifacts.fetch(version_key(version.project_id, version.name))
        self.version = version
        self._features = features
        self._predictor = load_predictor(folder)  # first: it verifies every file of the folder
        self.labels = TrainedLabels.read(folder)
        self._out_of_fold = load_out_of_fold(folder)

    def compare(self, candidate: OutOfFold, labelled: Sequence[LabelledImage], schema: LabelSchema) -> Comparison:
        """Compare a candidate with this version, image by image.

        Images that this version was trained on count only where it has an out-of-fold prediction for them.
        """
        known = self.probabilities(candidate.digests)
        columns = [self.version.class_names.index(name) for name in schema.class_names]
        active = np.array(list(known.values()), np.float32).reshape(len(known), len(self.version.class_names))
        own = OutOfFold(digests=tuple(known), probabilities=normalised(active[:, columns], schema))
        return compare_by_image(candidate, own, labelled, schema)

    def probabilities(self, digests: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return probabilities, shape (n_classes,), by image, for images that this version can be judged on."""
        remembered = dict(zip(self._out_of_fold.digests, self._out_of_fold.probabilities, strict=True))
        trained_on = {image.image_digest for image in self.labels.labelled}
        unseen = [digest for digest in digests if digest not in trained_on]
        rows, found = self._features.read(self.version.backbone_digest, unseen)
        if found.any():
            fresh = self._predictor.predict_proba(rows)
            remembered.update(zip(np.array(unseen)[found].tolist(), fresh, strict=True))
        return remembered


def normalised(probabilities: NDArray[Floats], schema: LabelSchema) -> NDArray[Floats]:
    """Return probabilities of the classes that still exist: rows sum to one where classes exclude each other."""
    if schema.multiple:
        return probabilities
    total = np.maximum(probabilities.sum(axis=1, keepdims=True), np.finfo(probabilities.dtype).tiny)
    normal: NDArray[Floats] = probabilities / total
    return normal
