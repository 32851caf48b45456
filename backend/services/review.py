"""What to look at again, and what more labels would bring: two views of a project that change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from backend.agreement import Agreement, annotator_agreement
from backend.domain import LabelledImage, ModelVersion, VersionKind, agreed_labels
from backend.errors import CheckpointCorrupt, Conflict, NotFound
from backend.ports import ArtifactStore, Database
from backend.promotion import normalised, targets_of, version_key
from model.checkpoint import CorruptCheckpoint, load_out_of_fold
from model.forecast import Forecast, forecast
from model.learned import OutOfFold
from model.noise import suspects

N_MORE_LABELS = 50
MIN_POINTS = 2
GROWTH_BETWEEN_POINTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A label to look at again; ``confidence`` is the probability, 0 to 1, that it is wrong."""

    task_id: int
    image_digest: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReview:
    """The suspects among ``n_checked`` labels, the most probably wrong first, and how far annotators agree."""

    suspects: tuple[Suspect, ...]
    n_checked: int
    agreement: Agreement


class Review:
    """Shows a project's doubtful labels, and what more labels would bring."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def suspects(self, project_id: int) -> LabelReview:
        """Hold the labels that tasks agree on now against what the active version says of their images.

        It says it out of fold, so that no label speaks for itself. A label is checked where there is such a
        prediction of its image, and the version knows all of its classes. What somebody marked as ground truth was
        looked at, and is no suspect.

        Raises:
            NotFound: there is no such project.
            Conflict: there is no label config or no version that labels could be held against.
            CheckpointCorrupt: the active version cannot be read.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            active = stores.versions.active(project_id)
            tasks = stores.tasks.all(project_id)
            annotations = stores.annotations.all(project_id)
        if project.schema is None:
            raise Conflict(project.label_config.problem or "the label config is not known yet: open the project once")
        if active is None:
            raise Conflict(f"project {project_id} has no version yet: label some more images")
        known = tuple(name for name in project.schema.class_names if name in active.class_names)
        if not known:
            raise Conflict(f"{active.name} knows none of the classes in the label config: label some images with them")
        schema = replace(project.schema, class_names=known)
        out_of_fold = self._out_of_fold(active)
        row_of = {digest: row for row, digest in enumerate(out_of_fold.digests)}
        images = {task.id: task.image_digest for task in tasks if task.image_digest}
        labelled = [
            LabelledImage(task_id=task_id, image_digest=images[task_id], class_names=label)
            for task_id, label in agreed_labels(annotations, project.schema).items()
            if images.get(task_id) in row_of and set(label) <= set(known)
        ]
        rows = [row_of[image.image_digest] for image in labelled]
        columns = [active.class_names.index(name) for name in known]
        looked_at = {annotation.task_id for annotation in annotations if annotation.ground_truth}
        probabilities = normalised(out_of_fold.probabilities[np.ix_(rows, columns)], schema)
        return LabelReview(
            suspects=tuple(
                Suspect(
                    task_id=labelled[found.row].task_id,
                    image_digest=labelled[found.row].image_digest,
                    given=tuple(known[column] for column in found.given),
                    suggested=tuple(known[column] for column in found.suggested),
                    confidence=found.confidence,
                )
                for found in suspects(probabilities, targets_of(labelled, schema))
                if labelled[found.row].task_id not in looked_at
            ),
            n_checked=len(labelled),
            agreement=annotator_agreement(annotations, project.schema),
        )

    def forecast(self, project_id: int) -> Forecast:
        """Return what ``N_MORE_LABELS`` more labels would bring, from the accuracies of the project's versions.

        They are out-of-fold estimates on the labelled images, in the order that annotators labelled them in: where
        the queue puts hard images first, versions are judged on harder images than the project holds, and on other
        ones from version to version.

        Raises:
            NotFound: there is no such project.
            Conflict: there are too few versions.
        """
        with self._database.snapshot() as stores:
            stores.projects.get(project_id)
            versions = stores.versions.all(project_id)
        if not versions:
            raise Conflict(f"project {project_id} has no version yet: label some more images")
        points = learning_curve(versions)
        if len(points) < MIN_POINTS:
            raise Conflict(
                f"project {project_id} has too few versions for a forecast: it takes heads learned from two different "
                "numbers of labels, of the same classes and on the same backbone; label some more images"
            )
        return forecast_of(points)

    def _out_of_fold(self, version: ModelVersion) -> OutOfFold:
        try:
            return load_out_of_fold(self._artifacts.fetch(version_key(version.project_id, version.name)))
        except (CorruptCheckpoint, NotFound) as error:
            raise CheckpointCorrupt(f"{version.name} cannot be used: {error}; train again or roll back") from error


def learning_curve(versions: Sequence[ModelVersion]) -> list[ModelVersion]:
    """Return the versions that tell how accuracy grows with labels, the one with most labels first.

    They are heads comparable with the newest one: of the same classes, on the same backbone, from no more labels.
    Each has at least ``GROWTH_BETWEEN_POINTS`` times the labels of the next, unless only two are left: versions that
    are nearer to each other were judged on mostly the same images, and would together feign a certainty that is not
    there.

    Args:
        versions: of one project, newest first.
    """
    heads = [version for version in versions if version.kind is VersionKind.HEAD and version.n_validation]
    newest_of: dict[int, ModelVersion] = {}
    for version in heads:
        if (
            version.backbone_digest == heads[0].backbone_digest
            and set(version.class_names) == set(heads[0].class_names)
            and version.n_labels <= heads[0].n_labels
        ):
            newest_of.setdefault(version.n_labels, version)
    points: list[ModelVersion] = []
    for n_labels in sorted(newest_of, reverse=True):
        if not points or points[-1].n_labels >= GROWTH_BETWEEN_POINTS * n_labels:
            points.append(newest_of[n_labels])
    if len(points) == 1 and len(newest_of) > 1:
        points.append(newest_of[min(newest_of)])
    return points


def forecast_of(points: Sequence[ModelVersion]) -> Forecast:
    """Carry the learning curve of some versions on."""
    return forecast(
        [version.n_labels for version in points],
        [version.metrics.accuracy for version in points],
        [standard_error(version.metrics.accuracy, version.n_validation) for version in points],
        N_MORE_LABELS,
    )


def standard_error(accuracy: float, n_images: int) -> float:
    """Return the standard error of an accuracy measured on some images, 0 to 0.25.

    Two successes and two failures are added (Agresti and Coull: "Approximate is better than 'exact' for interval
    estimation of binomial proportions", 1998): else all of a few images right would look like certainty.
    """
    n_trials = n_images + 4
    share = (accuracy * n_images + 2) / n_trials
    return math.sqrt(share * (1 - share) / n_trials)
