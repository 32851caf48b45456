"""Labels become a model version: snapshot, learn, compare with the active version, promote or reject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from backend.domain import (
    Comparison,
    JobKind,
    LabelCounts,
    LabelledImage,
    LabelSchema,
    Metrics,
    ModelVersion,
    Progress,
    Project,
    TrainingPolicy,
    VersionKind,
    VersionStatus,
    agreed_labels,
    decide_promotion,
    version_name,
)
from backend.errors import NotFound, TrainingImpossible
from backend.ports import ArtifactStore, Clock, Database, FeatureStore, ReportProgress, Stores
from backend.scheduling import Scheduler
from model.checkpoint import CorruptCheckpoint, load_learned, load_out_of_fold, save_checkpoint
from model.evaluation import compare
from model.inference import load_predictor
from model.learning import Examples, Learned, TooFewLabels, fold_of, learn

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = structlog.get_logger()

MAX_POOL_IMAGES = 20_000
HELD_OUT_FOLD = 0
"""The fold that no network is ever fine-tuned on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Everything known of a project at one moment; ``pool`` are digests of images without a label."""

    project: Project
    schema: LabelSchema
    active: ModelVersion | None
    versions: tuple[ModelVersion, ...]
    labelled: tuple[LabelledImage, ...]
    pool: tuple[str, ...]
    counts: LabelCounts

    def fingerprint(self, backbone_digest: str) -> str:
        """Identify what a head would learn from: labels, classes, features, and the pool's order of magnitude."""
        content = [
            backbone_digest,
            self.schema.class_names,
            self.schema.multiple,
            [(image.task_id, image.image_digest, image.class_names) for image in self.labelled],
            len(self.pool).bit_length(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Training:
    """Trains versions and decides which one is active."""

    def __init__(
        self,
        database: Database,
        features: FeatureStore,
        artifacts: ArtifactStore,
        clock: Clock,
        scheduler: Scheduler,
        policy: TrainingPolicy,
    ) -> None:
        self._database = database
        self._features = features
        self._artifacts = artifacts
        self._clock = clock
        self._scheduler = scheduler
        self._policy = policy

    def fit_head(self, project_id: int, report: ReportProgress) -> str:
        """Fit a head on stored features and promote it if it deserves that; return the outcome in words.

        Raises:
            TrainingImpossible: too few labels, classes or features.
        """
        training_set = self.training_set(project_id)
        digest = training_set.project.backbone_digest
        if digest is None:
            raise TrainingImpossible("no image is embedded yet")
        fingerprint = training_set.fingerprint(digest)
        if any(version.fingerprint == fingerprint for version in training_set.versions):
            return "nothing new to learn since the last version"
        report(Progress(done=0, total=2, unit="steps"))
        learned = self.learn_head(training_set, digest)
        report(Progress(done=1, total=2, unit="steps"))
        candidate = self.save(training_set, learned, digest, VersionKind.HEAD)
        return self.promote_or_reject(training_set, candidate, learned)

    def training_set(self, project_id: int) -> TrainingSet:
        """Return what there is to learn from.

        Raises:
            TrainingImpossible: the label config is not supported, or there are too few labels or classes.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            if project.schema is None:
                raise TrainingImpossible(project.label_config.problem or "the label config is not known yet")
            tasks = [task for task in stores.tasks.all(project_id) if task.image_digest]
            labels = agreed_labels(stores.annotations.all(project_id), project.schema)
            versions = tuple(stores.versions.all(project_id))
        labelled = tuple(
            LabelledImage(task_id=task.id, image_digest=task.image_digest or "", class_names=labels[task.id])
            for task in tasks
            if task.id in labels
        )
        known = {image.image_digest for image in labelled}
        pool = tuple(sorted({task.image_digest or "" for task in tasks} - known))[:MAX_POOL_IMAGES]
        training_set = TrainingSet(
            project=project,
            schema=project.schema,
            active=next((version for version in versions if version.status is VersionStatus.ACTIVE), None),
            versions=versions,
            labelled=labelled,
            pool=pool,
            counts=label_counts(labels, len(labelled), versions),
        )
        decision = self._policy.decide(training_set.counts, training_set.schema)
        if decision.next is None:
            raise TrainingImpossible(decision.reason)
        return training_set

    def learn_head(self, training_set: TrainingSet, digest: str) -> Learned:
        """Learn a head on the features of one backbone.

        Raises:
            TrainingImpossible: too few of the labelled images have features.
        """
        rows, found = self._features.read(digest, [image.image_digest for image in training_set.labelled])
        labelled = [image for image, here in zip(training_set.labelled, found, strict=True) if here]
        pool, _ = self._features.read(digest, training_set.pool)
        examples = Examples(
            features=rows,
            targets=targets_of(labelled, training_set.schema),
            digests=tuple(image.image_digest for image in labelled),
            judged=self._judged(labelled, digest),
        )
        try:
            return learn(
                examples,
                training_set.schema.class_names,
                multiple=training_set.schema.multiple,
                block_sizes=self._features.block_sizes(digest),
                pool=pool,
                previous=self._previous(training_set, digest),
            )
        except TooFewLabels as error:
            raise TrainingImpossible(f"{error} ({len(labelled)} labelled images are embedded)") from error

    def save(self, training_set: TrainingSet, learned: Learned, digest: str, kind: VersionKind) -> ModelVersion:
        """Store what was learned as a candidate version."""
        project_id = training_set.project.id
        with self._artifacts.scratch() as folder:
            snapshot = [[image.task_id, image.image_digest, list(image.class_names)] for image in training_set.labelled]
            (folder / "labels.json").write_text(json.dumps(snapshot))
            checkpoint_digest = save_checkpoint(folder, learned, backbone_digest=digest)
            with self._database.transaction() as stores:
                number = stores.versions.next_number(project_id)
            name = version_name(project_id, number, checkpoint_digest)
            self._artifacts.publish(version_key(project_id, name), folder)
        candidate = ModelVersion(
            project_id=project_id,
            number=number,
            name=name,
            kind=kind,
            status=VersionStatus.CANDIDATE,
            created_at=self._clock.now(),
            n_labels=len(training_set.labelled),
            n_validation=learned.calibrated.n,
            metrics=metrics_of(learned),
            class_names=training_set.schema.class_names,
            backbone_digest=digest,
            fingerprint=training_set.fingerprint(digest),
        )
        with self._database.transaction() as stores:
            stores.versions.add(candidate)
        return candidate

    def promote_or_reject(self, training_set: TrainingSet, candidate: ModelVersion, learned: Learned) -> str:
        """Compare a candidate with the active version on the same images and decide."""
        active = training_set.active
        comparison = self._compare(training_set, active, learned) if active else None
        n_withdrawn = self._count_withdrawn(training_set, active) if active else 0
        decision = decide_promotion(candidate, active, comparison, n_withdrawn=n_withdrawn)
        with self._database.transaction() as stores:
            if decision.promote:
                self._activate(stores, candidate, decision.reason)
            else:
                stores.versions.reject(candidate.project_id, candidate.name, decision.reason)
            if self._policy.finetune_is_due(training_set.counts):
                self._scheduler.soon(stores, candidate.project_id, JobKind.FINETUNE)
        outcome = "promoted" if decision.promote else "rejected"
        log.info(f"version {outcome}", project=candidate.project_id, version=candidate.name, reason=decision.reason)
        return f"{candidate.name} {outcome}: {decision.reason}"

    def rollback(self, project_id: int, name: str) -> ModelVersion:
        """Make an earlier version active again.

        Raises:
            NotFound: the project has no such version, or its weights are gone.
        """
        self._artifacts.fetch(version_key(project_id, name))
        with self._database.transaction() as stores:
            version = self._activate(stores, stores.versions.get(project_id, name), "rolled back by hand")
            self._scheduler.soon(stores, project_id, JobKind.EMBED)
        log.info("rolled back", project=project_id, version=name)
        return version

    def _activate(self, stores: Stores, version: ModelVersion, reason: str) -> ModelVersion:
        project = stores.projects.get(version.project_id)
        if project.backbone_digest != version.backbone_digest:
            stores.projects.save(replace(project, backbone_digest=version.backbone_digest))
        self._scheduler.push(stores, version.project_id)
        return stores.versions.activate(version.project_id, version.name, reason)

    def _judged(self, labelled: Sequence[LabelledImage], digest: str) -> NDArray[np.bool_]:
        """Tell which images may judge: all of them, unless the backbone was fine-tuned on some."""
        if not self._artifacts.keys(f"backbones/{digest}"):
            return np.ones(len(labelled), dtype=bool)
        return np.array([fold_of(image.image_digest) == HELD_OUT_FOLD for image in labelled], dtype=bool)

    def _previous(self, training_set: TrainingSet, digest: str) -> Learned | None:
        active = training_set.active
        if active is None or active.backbone_digest != digest or active.class_names != training_set.schema.class_names:
            return None
        try:
            return load_learned(self._artifacts.fetch(version_key(active.project_id, active.name)))
        except (CorruptCheckpoint, NotFound) as error:
            log.warning("cold start", project=active.project_id, version=active.name, reason=str(error))
            return None

    def _compare(self, training_set: TrainingSet, active: ModelVersion, learned: Learned) -> Comparison | None:
        """Compare on the candidate's judged images, leaving out those that the active version was trained on.

        For an image in the active version's training set its out-of-fold prediction stands in, where there is one.
        """
        try:
            folder = self._artifacts.fetch(version_key(active.project_id, active.name))
            remembered = load_out_of_fold(folder)
            predictor = load_predictor(folder)
        except (CorruptCheckpoint, NotFound) as error:
            log.error("active version unreadable", project=active.project_id, version=active.name, reason=str(error))
            return None
        judged = learned.out_of_fold
        trained_on = {digest for _, digest, _ in read_labels(folder)}
        out_of_fold = dict(zip(remembered.digests, remembered.probabilities, strict=True))
        unseen = [digest for digest in judged.digests if digest not in trained_on]
        rows, found = self._features.read(active.backbone_digest, unseen)
        known = [digest for digest, here in zip(unseen, found, strict=True) if here]
        fresh = dict(zip(known, predictor.predict_proba(rows), strict=True)) if known else {}
        probabilities = [fresh.get(digest, out_of_fold.get(digest)) for digest in judged.digests]
        here = [index for index, row in enumerate(probabilities) if row is not None]
        if not here:
            return None
        labels = {image.image_digest: image for image in training_set.labelled}
        targets = targets_of([labels[judged.digests[index]] for index in here], training_set.schema)
        columns = [active.class_names.index(name) for name in training_set.schema.class_names]
        active_rows = np.stack([probabilities[index] for index in here])[:, columns]
        result = compare(judged.probabilities[here], active_rows, targets, training_set.schema.multiple)
        return Comparison(
            n_images=result.n_images,
            log_loss_difference=result.log_loss_difference,
            standard_error=result.standard_error,
            accuracy_difference=result.accuracy_difference,
        )
