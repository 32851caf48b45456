"""What to look at again, and what more labels would bring: two views of a project that change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from backend.agreement import Agreement, annotator_agreement
from backend.domain import LabelledImage, ModelVersion, Project, VersionKind, agreed_labels
from backend.errors import CheckpointCorrupt, Conflict, NotFound
from backend.ports import ArtifactStore, Database
from backend.promotion import normalised, targets_of, version_key
from model.checkpoint import CorruptCheckpoint, load_out_of_fold, load_predictor
from model.evaluation import evaluate
from model.forecast import Forecast, forecast
from model.learned import OutOfFold
from model.noise import suspects

N_MORE_LABELS = 50
MIN_POINTS = 2
MIN_RANDOM_IMAGES = 30
GROWTH_BETWEEN_POINTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A label to look at again.

    ``confidence`` is the probability, 0 to 1, that it is wrong, ``probability`` that of the suggested one.
    """

    task_id: int
    image_digest: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    probability: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReview:
    """The suspects among ``n_checked`` labels, the most probably wrong first, and how far annotators agree."""

    suspects: tuple[Suspect, ...]
    n_checked: int
    agreement: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """How a version did, out of fold, on some images: accuracy from 0 to 1."""

    n_labels: int
    accuracy: float
    n_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelForecast:
    """What more labels would bring, measured on ``n_images``; ``at_random``: those that chance alone chose."""

    expected: Forecast
    n_images: int
    at_random: bool

    @property
    def sentence(self) -> str:
        """The forecast in plain words."""
        on = "images drawn at random" if self.at_random else "labelled images, which may be harder than the others"
        return f"{self.expected.sentence} Measured on {self.n_images} {on}."


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
                    probability=found.probability,
                    confidence=found.confidence,
                )
                for found in suspects(probabilities, targets_of(labelled, schema))
                if labelled[found.row].task_id not in looked_at
            ),
            n_checked=len(labelled),
            agreement=annotator_agreement(annotations, project.schema),
        )

    def forecast(self, project_id: int) -> LabelForecast:
        """Return what ``N_MORE_LABELS`` more labels would bring, from the accuracies of the project's versions.

        Where the queue puts hard images first, versions are judged on harder images than the project holds. So they
        are judged on the images that chance put into the queue, as soon as there are ``MIN_RANDOM_IMAGES`` of them at
        two versions, and on all labelled images until then. Both are out-of-fold estimates.

        Raises:
            NotFound: there is no such project.
            Conflict: there are too few versions.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            versions = stores.versions.all(project_id)
            tasks = stores.tasks.all(project_id)
            annotations = stores.annotations.all(project_id)
        if not versions:
            raise Conflict(f"project {project_id} has no version yet: label some more images")
        curve = learning_curve(versions)
        if len(curve) < MIN_POINTS:
            raise Conflict(
                f"project {project_id} has too few versions for a forecast: it takes heads learned from two different "
                "numbers of labels, of the same classes and on the same backbone; label some more images"
            )
        points = [
            CurvePoint(n_labels=version.n_labels, accuracy=version.metrics.accuracy, n_images=version.n_validation)
            for version in curve
        ]
        drawn = {task.id: task.image_digest for task in tasks if task.drawn_at_random and task.image_digest}
        labelled = [
            LabelledImage(task_id=task_id, image_digest=drawn[task_id], class_names=label)
            for task_id, label in (agreed_labels(annotations, project.schema) if project.schema else {}).items()
            if task_id in drawn
        ]
        random_points = [point for version in curve if (point := self._point_at_random(version, labelled, project))]
        at_random = len(random_points) >= MIN_POINTS
        if at_random:
            points = random_points
        return LabelForecast(expected=forecast_of(points), n_images=points[0].n_images, at_random=at_random)

    def _point_at_random(
        self, version: ModelVersion, labelled: Sequence[LabelledImage], project: Project
    ) -> CurvePoint | None:
        """Return how a version does on images drawn at random, if it was judged on enough of them."""
        if project.schema is None or len(labelled) < MIN_RANDOM_IMAGES:
            return None
        try:
            folder = self._artifacts.fetch(version_key(version.project_id, version.name))
            predictor, out_of_fold = load_predictor(folder), load_out_of_fold(folder)
        except (CorruptCheckpoint, NotFound):
            return None
        row_of = {digest: row for row, digest in enumerate(out_of_fold.digests)}
        judged = [
            image
            for image in labelled
            if image.image_digest in row_of and set(image.class_names) <= set(version.class_names)
        ]
        if len(judged) < MIN_RANDOM_IMAGES:
            return None
        report = evaluate(
            out_of_fold.probabilities[[row_of[image.image_digest] for image in judged]],
            targets_of(judged, replace(project.schema, class_names=version.class_names)),
            multiple=project.schema.multiple,
            thresholds=predictor.thresholds,
        )
        return CurvePoint(n_labels=version.n_labels, accuracy=report.accuracy, n_images=len(judged))

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


def forecast_of(points: Sequence[CurvePoint]) -> Forecast:
    """Carry a learning curve on."""
    return forecast(
        [point.n_labels for point in points],
        [point.accuracy for point in points],
        [standard_error(point.accuracy, point.n_images) for point in points],
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
