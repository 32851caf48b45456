"""Labels become a model version: snapshot, learn, save as a candidate, have it judged."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import structlog

from backend.domain import (
    ROLLED_BACK,
    LabelSchema,
    ModelVersion,
    Progress,
    TrainingPolicy,
    VersionKind,
    VersionStatus,
    version_name,
)
from backend.errors import EmbedderUnavailable, NotFound, TrainingImpossible
from backend.ports import ArtifactStore, Clock, Database, Embedder, FeatureStore, ReportProgress
from backend.pretrained import names_of_all_classes
from backend.promotion import (
    TrainedLabels,
    backbone_key,
    classifier_key,
    metrics_of,
    targets_of,
    version_key,
)
from backend.training_set import TrainingSet, read_training_set
from model.checkpoint import save_checkpoint
from model.folds import NetworkSplit
from model.learning import Examples, Learned, TooFewLabels, learn
from model.opinion import CorruptClassifier, Opinion, PretrainedLayers
from model.reports import EmbeddingSettings, PoolSnapshot

if TYPE_CHECKING:
    from backend.services.promoting import Promoting
    from model.training import TrainingConfig

log = structlog.get_logger()


class Training:
    """Trains versions."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder,
        features: FeatureStore,
        artifacts: ArtifactStore,
        clock: Clock,
        promoting: Promoting,
        policy: TrainingPolicy,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._features = features
        self._artifacts = artifacts
        self._clock = clock
        self._promoting = promoting
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
        embedding = self._embedding_settings(digest)
        candidate = self.save(training_set, learned, digest, VersionKind.HEAD, embedding=embedding)
        judgement = self._promoting.judge(training_set, candidate, learned.out_of_fold)
        return self._promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)

    def training_set(self, project_id: int) -> TrainingSet:
        """Return what there is to learn from.

        Raises:
            TrainingImpossible: the label config is not supported, or there are too few labels or classes.
        """
        return read_training_set(self._database, self._policy, project_id)

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
        pool, found = self._features.read(digest, training_set.pool)
        pool_digests = [each for each, here in zip(training_set.pool, found, strict=True) if here]
        examples = Examples(
            features=rows,
            targets=targets_of(training_set.labelled, training_set.schema),
            digests=digests,
            split=self._split(digest),
        )
        try:
            learned = learn(
                examples,
                training_set.schema.class_names,
                multiple=training_set.schema.multiple,
                block_sizes=self._features.block_sizes(digest),
                pool=pool if len(pool) else None,
                opinion=self._opinion(training_set.schema, digest),
            )
        except TooFewLabels as error:
            raise TrainingImpossible(f"{error} ({len(digests)} labelled images are embedded)") from error
        return replace(learned, pool=PoolSnapshot.of(pool_digests))

    def save(
        self,
        training_set: TrainingSet,
        learned: Learned,
        digest: str,
        kind: VersionKind,
        *,
        embedding: EmbeddingSettings | None = None,
        finetuning: TrainingConfig | None = None,
        finetuning_s: float | None = None,
        embedding_s: float | None = None,
    ) -> ModelVersion:
        """Store what was learned as a candidate version, and how its network was trained, if it was for this one.

        See ``save_checkpoint`` for the rest.

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
                embedding=embedding,
                finetuning=asdict(finetuning) if finetuning else None,
                finetuning_s=finetuning_s,
                embedding_s=embedding_s,
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

    def _embedding_settings(self, digest: str) -> EmbeddingSettings | None:
        """Return how features are computed now, by whoever does it; a version comes about without knowing that, too."""
        try:
            return self._embedder.settings(digest)
        except EmbedderUnavailable as error:
            log.info("nobody says how features are computed", backbone=digest[:8], reason=str(error))
            return None

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
        return same[0] if same and self._promoting.load_active(training_set) else None

    def _split(self, backbone_digest: str) -> NetworkSplit | None:
        """Return which images may judge a backbone that was fine-tuned."""
        if not self._artifacts.keys(backbone_key(backbone_digest)):
            return None
        return NetworkSplit.read(self._artifacts.fetch(backbone_key(backbone_digest)))

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
