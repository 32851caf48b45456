"""What to label next, and which labels to check: chosen here, and shown as views of Label Studio's Data Manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from backend.domain import (
    KeptView,
    LabelledImage,
    LabelSchema,
    ModelVersion,
    NoSuggestion,
    Project,
    Sampling,
    Suggestion,
    Task,
    TaskView,
    ViewKind,
    agreed_labels,
)
from backend.errors import Conflict
from backend.ports import Database, FeatureStore, LabelStudioGateway, ReportProgress
from backend.promotion import normalised, targets_of
from model.inference import Suggested
from model.query import Pool, score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backend.services.review import LabelReview, Suspect
    from model.inference import Predictor

log = structlog.get_logger()

MAX_POOL_IMAGES = 50_000
N_SUSPECTS = 30
TITLES = {ViewKind.LABEL_NEXT: "Label next", ViewKind.CHECK_LABELS: "Check these labels"}


class PredictorSource(Protocol):
    """Loads versions."""

    def predictor(self, version: ModelVersion) -> Predictor:
        """Return a version ready to predict."""

    def disclosed(self, version: ModelVersion, task: Task, suggested: Suggested | str) -> Suggestion | NoSuggestion:
        """Return what is suggested for a task, as annotators may see it."""


class SuspectSource(Protocol):
    """Knows which labels are probably wrong."""

    def suspects(self, project_id: int) -> LabelReview:
        """Return them, the most probably wrong first; raises ``Conflict`` while nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What a project's next batch is chosen from: the open tasks, and the labels and the version there are.

    ``skipped`` are the digests of the images that somebody saw and would not label.
    """

    project: Project
    schema: LabelSchema
    version: ModelVersion | None
    open_tasks: tuple[Task, ...]
    labelled: tuple[LabelledImage, ...]
    skipped: tuple[str, ...]

    @property
    def backbone_digest(self) -> str | None:
        """Whose features the choice is made by."""
        return self.version.backbone_digest if self.version else self.project.backbone_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tasks to label next, and those of them that chance alone chose."""

    task_ids: tuple[int, ...] = ()
    at_random: tuple[int, ...] = ()


class Querying:
    """Chooses what is labelled next by a query strategy, and brings it to the annotator."""

    def __init__(
        self,
        database: Database,
        features: FeatureStore,
        predictors: PredictorSource,
        review: SuspectSource,
        gateway: LabelStudioGateway | None,
        *,
        strategy: str,
        batch_size: int,
        enabled: bool,
    ) -> None:
        self._database = database
        self._features = features
        self._predictors = predictors
        self._review = review
        self._gateway = gateway
        self._strategy = strategy
        self._batch_size = batch_size
        self._enabled = enabled

    def run(self, project_id: int, report: ReportProgress) -> str:  # noqa: ARG002 - over within a second or two
        """Choose the next batch and the labels to check, and show both in Label Studio.

        Raises:
            LabelStudioError: it could not be shown.
            CheckpointCorrupt: the active version cannot be read.
        """
        if not self._enabled:
            return "nothing chosen: LABELLING_VIEWS is off"
        if self._gateway is None:
            return "nothing chosen: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not set"
        candidates = self._candidates(project_id)
        if candidates is None:
            return "nothing to choose from: the label config is not supported, or no image is embedded yet"
        batch = self._choose(candidates)
        with self._database.transaction() as stores:
            stores.tasks.record_drawn(project_id, batch.at_random)
        suspects = self._suspects(project_id)
        self._suggest_instead(self._gateway, candidates, suspects)
        to_check = tuple(suspect.task_id for suspect in suspects)
        views = self._gateway.views(candidates.project.identity.label_studio_id)
        shown = [self._keep(self._gateway, candidates.project, views, ViewKind.LABEL_NEXT, batch.task_ids)]
        # Nobody needs to see an empty list of mistakes before there ever was one.
        if suspects or self._kept(project_id, ViewKind.CHECK_LABELS):
            shown.append(self._keep(self._gateway, candidates.project, views, ViewKind.CHECK_LABELS, to_check))
        return "; ".join(shown)

    def _candidates(self, project_id: int) -> Candidates | None:
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            version = stores.versions.active(project_id)
            if project.schema is None or (version is None and project.backbone_digest is None):
                return None
            tasks = stores.tasks.all(project_id)
            annotations = stores.annotations.all(project_id)
        # A task that somebody skipped is not asked again either.
        answered = {annotation.task_id for annotation in annotations}
        readable = {task.id: task for task in tasks if task.image_digest and not task.image_problem}
        labels = agreed_labels(annotations, project.schema)
        return Candidates(
            project=project,
            schema=project.schema,
            version=version,
            open_tasks=tuple(task for task in readable.values() if task.id not in answered),
            labelled=tuple(
                LabelledImage(task_id=task_id, image_digest=readable[task_id].image_digest or "", class_names=label)
                for task_id, label in labels.items()
                if task_id in readable
            ),
            skipped=tuple(
                task.image_digest or "" for task in readable.values() if task.id in answered and task.id not in labels
            ),
        )

    def _choose(self, candidates: Candidates) -> Batch:
        # By digest: as good as drawn at random where there are too many, and the same ones every time.
        tasks = sorted(candidates.open_tasks, key=lambda task: (task.image_digest or "", task.id))[:MAX_POOL_IMAGES]
        digest = candidates.backbone_digest or ""
        rows, found = self._features.read(digest, [task.image_digest or "" for task in tasks])
        tasks = [task for task, here in zip(tasks, found, strict=True) if here]
        if not tasks:
            return Batch()
        labelled_rows, found = self._features.read(digest, [image.image_digest for image in candidates.labelled])
        labelled = [image for image, here in zip(candidates.labelled, found, strict=True) if here]
        skipped_rows, _ = self._features.read(digest, candidates.skipped)
        pool = Pool(
            features=rows,
            probabilities=self._probabilities(candidates, rows),
            labelled_features=labelled_rows.reshape(len(labelled), rows.shape[1]),
            labelled_targets=targets_of(labelled, candidates.schema),
            multiple=candidates.schema.multiple,
            block_sizes=self._features.block_sizes(digest),
            skipped_features=skipped_rows.reshape(-1, rows.shape[1]),
        )
        scores = score(self._strategy, pool, batch_size=self._batch_size, seed=len(labelled))
        first = np.argsort(-scores.values)[: self._batch_size]
        return Batch(
            task_ids=tuple(tasks[index].id for index in first),
            at_random=tuple(tasks[index].id for index in first if scores.at_random[index]),
        )

    def _probabilities(self, candidates: Candidates, rows: NDArray[np.float16]) -> NDArray[np.float64] | None:
        """Return probabilities, (n_images, n_classes), of the classes that the active version knows, if any."""
        version, schema = candidates.version, candidates.schema
        known = tuple(name for name in schema.class_names if version and name in version.class_names)
        if version is None or not known:
            return None
        columns = [version.class_names.index(name) for name in known]
        probabilities = self._predictors.predictor(version).predict_proba(rows)[:, columns]
        return normalised(probabilities, schema)

    def _suspects(self, project_id: int) -> tuple[Suspect, ...]:
        try:
            review = self._review.suspects(project_id)
        except Conflict:
            return ()
        return review.suspects[:N_SUSPECTS]

    def _suggest_instead(
        self, gateway: LabelStudioGateway, candidates: Candidates, suspects: Sequence[Suspect]
    ) -> None:
        """Store what suspect labels should be, once for each version, where suggestions are pushed at all.

        The view shows and sorts by it; and a live request would answer with what learned from the suspect itself.
        """
        version, project = candidates.version, candidates.project
        if version is None or project.pushed_version is None:
            return
        instead = {each.task_id: Suggested(class_names=each.suggested, score=each.probability) for each in suspects}
        with self._database.snapshot() as stores:
            tasks = [
                task for task in stores.tasks.get(project.id, list(instead)) if task.pushed_version != version.name
            ]
        results = [self._predictors.disclosed(version, task, instead[task.id]) for task in tasks]
        suggestions = [result for result in results if isinstance(result, Suggestion)]
        if suggestions:
            gateway.import_predictions(project.identity.label_studio_id, candidates.schema, suggestions)
            with self._database.transaction() as stores:
                stores.tasks.record_pushed(project.id, [each.task_id for each in suggestions], version.name)

    def _kept(self, project_id: int, kind: ViewKind) -> KeptView | None:
        with self._database.snapshot() as stores:
            return stores.views.get(project_id, kind)

    def _keep(
        self,
        gateway: LabelStudioGateway,
        project: Project,
        views: Sequence[TaskView],
        kind: ViewKind,
        task_ids: Sequence[int],
    ) -> str:
        """Make a view show these tasks, unless somebody took it over, and say what became of it."""
        title, wanted = TITLES[kind], frozenset(task_ids)
        kept = self._kept(project.id, kind)
        if kept is None:
            kept = self._make(gateway, project, views, kind)
        elif not kept.released and not kept.is_as_left(_view(views, kept)):
            kept = replace(kept, released=True)
            self._save(project, kept)
            log.info("view changed by hand: left alone from now on", project=project.id, view=title)
        if kept.released:
            return f"{title!r} was changed or deleted by hand and is left alone"
        view = _view(views, kept)
        if view is None or view.task_ids != wanted:
            # Before Label Studio is told: whichever of the two it shows after a crash is known then.
            shown = kept.task_ids if view is None or view.task_ids is None else view.task_ids
            self._save(project, replace(kept, task_ids=wanted, previous_task_ids=shown))
            gateway.update_view(project.identity.label_studio_id, kept.label_studio_id, task_ids)
        return f"{len(task_ids)} tasks in {title!r}"

    def _make(
        self, gateway: LabelStudioGateway, project: Project, views: Sequence[TaskView], kind: ViewKind
    ) -> KeptView:
        """Make a view, or adopt one of ours that all memory of was lost."""
        label_studio_id = project.identity.label_studio_id
        ours = next((view for view in views if view.title == TITLES[kind] and view.task_ids is not None), None)
        if ours is None and kind is ViewKind.LABEL_NEXT:
            self._choose_sampling(gateway, project)
        if ours is None:
            by_doubt = kind is ViewKind.LABEL_NEXT
            view_id = gateway.create_view(label_studio_id, TITLES[kind], (), least_sure_first=by_doubt)
        else:
            view_id = ours.id
        kept = KeptView(kind=kind, label_studio_id=view_id, task_ids=(ours and ours.task_ids) or frozenset())
        self._save(project, kept)
        return kept

    def _choose_sampling(self, gateway: LabelStudioGateway, project: Project) -> None:
        """Let the label stream ask what the version is least sure of: once, and only where nobody chose anything."""
        label_studio_id = project.identity.label_studio_id
        if gateway.project(label_studio_id).sampling is Sampling.SEQUENTIAL:
            gateway.set_sampling(label_studio_id, Sampling.UNCERTAINTY)
            log.info("label stream switched to uncertainty sampling", project=project.id)

    def _save(self, project: Project, view: KeptView) -> None:
        with self._database.transaction() as stores:
            stores.views.save(project.id, view)


def _view(views: Sequence[TaskView], kept: KeptView) -> TaskView | None:
    return next((view for view in views if view.id == kept.label_studio_id), None)
