"""Labels become a model version: snapshot, learn, compare with the active version, promote or reject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import structlog

from backend.domain import (
    JobKind,
    LabelCounts,
    LabelledImage,
    LabelSchema,
    ModelVersion,
    Progress,
    Project,
    PromotionDecision,
    TrainingPolicy,
    VersionKind,
    VersionStatus,
    agreed_labels,
    decide_promotion,
    finetune_labels,
    version_name,
)
from backend.errors import NotFound, TrainingImpossible
from backend.ports import ArtifactStore, Clock, Database, FeatureStore, ReportProgress, Stores
from backend.pretrained import names_of_all_classes
from backend.promotion import (
    ActiveVersion,
    TrainedLabels,
    backbone_key,
    classifier_key,
    metrics_of,
    targets_of,
    version_key,
)
from backend.scheduling import Scheduler
from model.checkpoint import CorruptCheckpoint, save_checkpoint
from model.folds import NetworkSplit
from model.learning import Examples, Learned, TooFewLabels, learn
from model.opinion import CorruptClassifier, Opinion, PretrainedLayers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.training import TrainingConfig

log = structlog.get_logger()

MAX_POOL_IMAGES = 20_000
ROLLED_BACK = "rolled back by hand"
"""Why a version is active that somebody chose, which no version may undo before labels change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """What there is to learn from at one moment.

    ``agreed`` are all labels that tasks agree on; ``labelled`` those of them that can be learned from, because their
    images can be had; ``pool`` are digests of images without a label.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was decided of a candidate, and the version that was active then, if any."""

    decision: PromotionDecision
    active: ModelVersion | None


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
        """Fit a head on stored features, promote it if it deserves that, and return the outcome in words.

        Raises:
            TrainingImpossible: too few labels, classes or features.
        """
        training_set = self.training_set(project_id)
        digest = training_set.project.backbone_digest
        if digest is None:
            raise TrainingImpossible("no image is embedded yet")
        training_set = self.with_features(training_set, digest)
        same = self._learned_already(training_set, digest)
        if same:
            return f"nothing new to learn since {same.name}"
        report(Progress(done=0, total=2, unit="steps"))
        learned = self.learn_head(training_set, digest)
        report(Progress(done=1, total=2, unit="steps"))
        candidate = self.save(training_set, learned, digest, VersionKind.HEAD)
        return self.conclude(training_set, candidate, learned, self.judge(training_set, candidate, learned))

    def training_set(self, project_id: int) -> TrainingSet:
        """Return what there is to learn from.

        Raises:
            TrainingImpossible: the label config is not supported, or there are too few labels or classes.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            if project.schema is None:
                raise TrainingImpossible(project.label_config.problem or "the label config is not known yet")
            tasks = stores.tasks.all(project_id)
            labels = agreed_labels(stores.annotations.all(project_id), project.schema)
            versions = tuple(stores.versions.all(project_id))
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
        decision = self._policy.decide(counts, project.schema)
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

    def with_features(self, training_set: TrainingSet, digest: str) -> TrainingSet:
        """Return the part of a training set whose images have features of a backbone."""
        digests = [image.image_digest for image in training_set.labelled]
        _, found = self._features.read(digest, digests)
        labelled = tuple(image for image, here in zip(training_set.labelled, found, strict=True) if here)
        return replace(training_set, labelled=labelled)

    def learn_head(self, training_set: TrainingSet, digest: str) -> Learned:
        """Learn a head on the features of one backbone; every labelled image must have them.

        Raises:
            TrainingImpossible: too few labelled images.
        """
        digests = tuple(image.image_digest for image in training_set.labelled)
        rows, _ = self._features.read(digest, digests)
        pool, _ = self._features.read(digest, training_set.pool)
        examples = Examples(
            features=rows,
            targets=targets_of(training_set.labelled, training_set.schema),
            digests=digests,
            judged=self._judged(digests, digest),
        )
        try:
            return learn(
                examples,
                training_set.schema.class_names,
                multiple=training_set.schema.multiple,
                block_sizes=self._features.block_sizes(digest),
                pool=pool if len(pool) else None,
                opinion=self._opinion(training_set.schema, digest),
            )
        except TooFewLabels as error:
            raise TrainingImpossible(f"{error} ({len(digests)} labelled images are embedded)") from error

    def save(
        self,
        training_set: TrainingSet,
        learned: Learned,
        digest: str,
        kind: VersionKind,
        *,
        finetuning: TrainingConfig | None = None,
        finetuning_s: float | None = None,
    ) -> ModelVersion:
        """Store what was learned as a candidate version, and how its network was trained, if it was for this one.

        The row comes before the folder: no folder is ever without a row, whenever a process dies.
        """
        project_id = training_set.project.id
        with self._artifacts.scratch() as folder:
            labels = TrainedLabels(labelled=training_set.labelled)
            labels.write(folder)
            checkpoint_digest = save_checkpoint(
                folder,
                learned,
                backbone_digest=digest,
                snapshot=labels.snapshot,
                finetuning=asdict(finetuning) if finetuning else None,
                finetuning_s=finetuning_s,
            )
            report = learned.calibrated
            with self._database.transaction() as stores:
                number = stores.versions.next_number(project_id)
                candidate = ModelVersion(
                    project_id=project_id,
                    number=number,
                    name=version_name(project_id, number, checkpoint_digest),
                    kind=kind,
                    status=VersionStatus.CANDIDATE,
                    created_at=self._clock.now(),
                    n_labels=len(training_set.labelled),
                    n_validation=report.n,
                    metrics=metrics_of(report),
                    class_names=training_set.schema.class_names,
                    backbone_digest=digest,
                    fingerprint=training_set.fingerprint(digest),
                )
                stores.versions.add(candidate)
            structlog.contextvars.bind_contextvars(version=candidate.name)
            self._artifacts.publish(version_key(project_id, candidate.name), folder)
        return candidate

    def judge(self, training_set: TrainingSet, candidate: ModelVersion, learned: Learned) -> Judgement:
        """Decide whether a candidate deserves to be active, by comparing it with the version that is active by now.

        Raises:
            TrainingImpossible: there is nothing to learn from any more.
        """
        present = self._present(training_set)
        decision = self._decide(training_set, present, candidate, learned)
        return Judgement(decision=decision, active=present.active)

    def _decide(
        self, training_set: TrainingSet, present: TrainingSet, candidate: ModelVersion, learned: Learned
    ) -> PromotionDecision:
        active = self._load_active(present)
        if active is None:
            return decide_promotion(candidate, None, None, class_names=present.schema.class_names, n_withdrawn=0)
        if present is not training_set and active.version.reason == ROLLED_BACK:
            return PromotionDecision(
                promote=False, reason=f"somebody went back to {active.version.name} while it was trained"
            )
        comparison = None
        if set(training_set.schema.class_names) <= set(active.version.class_names):
            comparison = active.compare(learned.out_of_fold, training_set.labelled, training_set.schema)
        return decide_promotion(
            candidate,
            active.version,
            comparison,
            class_names=present.schema.class_names,
            n_withdrawn=active.labels.count_withdrawn(present.agreed),
        )

    def _present(self, training_set: TrainingSet) -> TrainingSet:
        """Return the same, or what there is to learn from now where another version became active meanwhile."""
        project_id = training_set.project.id
        with self._database.snapshot() as stores:
            active = stores.versions.active(project_id)
        return training_set if _is_unchanged(active, training_set.active) else self.training_set(project_id)

    def conclude(
        self, training_set: TrainingSet, candidate: ModelVersion, learned: Learned, judgement: Judgement
    ) -> str:
        """Promote or reject a candidate, and return the outcome in words.

        It is judged anew where another version became active since.
        """
        with self._database.transaction() as stores:
            is_current = _is_unchanged(stores.versions.active(candidate.project_id), judgement.active)
            if is_current:
                self._settle(stores, training_set, candidate, judgement.decision)
        if not is_current:
            return self.conclude(training_set, candidate, learned, self.judge(training_set, candidate, learned))
        decision = judgement.decision
        outcome = "promoted" if decision.promote else "rejected"
        log.info(f"version {outcome}", project=candidate.project_id, version=candidate.name, reason=decision.reason)
        return f"{candidate.name} {outcome}: {decision.reason}"

    def _settle(
        self, stores: Stores, training_set: TrainingSet, candidate: ModelVersion, decision: PromotionDecision
    ) -> None:
        if decision.promote:
            self.activate(stores, candidate, decision.reason)
        else:
            stores.versions.reject(candidate.project_id, candidate.name, decision.reason)
            # No push comes that would do it, but some of what was to be labelled next has its label by now.
            self._scheduler.soon(stores, candidate.project_id, JobKind.QUERY)
        if candidate.kind is VersionKind.HEAD and self._policy.finetune_is_due(training_set.counts):
            self._scheduler.finetune(stores, candidate.project_id)

    def rollback(self, project_id: int, name: str) -> ModelVersion:
        """Make an earlier version active again.

        Raises:
            NotFound: the project has no such version, or its weights are gone.
        """
        with self._database.snapshot() as stores:
            version = stores.versions.get(project_id, name)
        if not self._artifacts.keys(version_key(project_id, name)):
            raise NotFound(
                f"the files of {name} are gone: VERSIONS_KEPT says of how many versions they stay; "
                "roll back to a newer one, or train"
            )
        with self._database.transaction() as stores:
            version = self.activate(stores, version, ROLLED_BACK)
        log.info("rolled back", project=project_id, version=name)
        return version

    def activate(self, stores: Stores, version: ModelVersion, reason: str) -> ModelVersion:
        """Make a version the active one, move the project to its backbone, and have its suggestions pushed."""
        project = stores.projects.get(version.project_id)
        if project.backbone_digest != version.backbone_digest:
            stores.projects.save(replace(project, backbone_digest=version.backbone_digest))
            self._scheduler.now(stores, version.project_id, JobKind.EMBED)
        self._scheduler.push(stores, version.project_id)
        return stores.versions.activate(version.project_id, version.name, reason)

    def _learned_already(self, training_set: TrainingSet, digest: str) -> ModelVersion | None:
        """Return the version that learned the same: the active one, or the newest on this backbone.

        The newest one counts whatever became of it: it was rejected, or somebody rolled back from it and wants it to
        stay so, be that to another backbone; but not when nobody came to judge it. Nothing counts while the active
        version is unreadable, because then another one has to come.
        """
        active = training_set.active
        newest = next((version for version in training_set.versions if version.backbone_digest == digest), None)
        known = [each for each in (active, newest) if each and each.was_judged and each.backbone_digest == digest]
        if active and active.reason == ROLLED_BACK and training_set.newest_judged:
            known.append(training_set.newest_judged)
        same = [each for each in known if each.fingerprint == training_set.fingerprint(each.backbone_digest)]
        return same[0] if same and self._load_active(training_set) else None

    def _judged(self, digests: Sequence[str], backbone_digest: str) -> NDArray[np.bool_]:
        """Tell which images may judge: all of them, unless the backbone was fine-tuned on some."""
        if not self._artifacts.keys(backbone_key(backbone_digest)):
            return np.ones(len(digests), dtype=bool)
        split = NetworkSplit.read(self._artifacts.fetch(backbone_key(backbone_digest)))
        return np.array([split.may_judge(digest) for digest in digests], dtype=bool)

    def _opinion(self, schema: LabelSchema, backbone_digest: str) -> Opinion | None:
        """Return what the backbone was pretrained to say of the classes, where it knows all of them by name."""
        with self._database.snapshot() as stores:
            names = names_of_all_classes(schema, stores.backbones.categories(backbone_digest))
        key = classifier_key(backbone_digest)
        if names is None or not self._artifacts.keys(key):
            return None
        try:
            return PretrainedLayers.read(self._artifacts.fetch(key)).opinion(names)
        except (CorruptClassifier, KeyError, NotFound) as error:
            log.warning("what the backbone was pretrained to say is left aside", reason=str(error))
            return None

    def _load_active(self, training_set: TrainingSet) -> ActiveVersion | None:
        """Return the active version; one that cannot be read any more is as good as none."""
        if training_set.active is None:
            return None
        try:
            return ActiveVersion(training_set.active, self._artifacts, self._features)
        except (CorruptCheckpoint, NotFound) as error:
            log.error("active version unreadable", version=training_set.active.name, reason=str(error))
            return None


def _is_unchanged(active: ModelVersion | None, known: ModelVersion | None) -> bool:
    """Tell whether the same version is active as was known to be, and for the same reason."""
    if active is None or known is None:
        return active is known
    return (active.name, active.reason) == (known.name, known.reason)
