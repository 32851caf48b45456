"""Which version of a project is active: candidates are judged and promoted or rejected, people roll back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from backend.domain import (
    ROLLED_BACK,
    JobKind,
    ModelVersion,
    PromotionDecision,
    TrainingPolicy,
    VersionKind,
    decide_promotion,
)
from backend.errors import NotFound
from backend.ports import ArtifactStore, Database, FeatureStore, Stores
from backend.promotion import ActiveVersion, version_key
from backend.scheduling import Scheduler
from backend.training_set import TrainingSet, read_training_set
from model.checkpoint import CorruptCheckpoint

if TYPE_CHECKING:
    from model.learned import OutOfFold

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was decided of a candidate, and the version that was active then, if any."""

    decision: PromotionDecision
    active: ModelVersion | None


class Promoting:
    """Decides which version is active."""

    def __init__(
        self,
        database: Database,
        features: FeatureStore,
        artifacts: ArtifactStore,
        scheduler: Scheduler,
        policy: TrainingPolicy,
    ) -> None:
        self._database = database
        self._features = features
        self._artifacts = artifacts
        self._scheduler = scheduler
        self._policy = policy

    def judge(self, training_set: TrainingSet, candidate: ModelVersion, out_of_fold: OutOfFold) -> Judgement:
        """Decide whether a candidate deserves to be active, by comparing it with the version that is active by now.

        Raises:
            TrainingImpossible: there is nothing to learn from any more.
        """
        present = self._present(training_set)
        decision = self._decide(training_set, present, candidate, out_of_fold)
        return Judgement(decision=decision, active=present.active)

    def _decide(
        self, training_set: TrainingSet, present: TrainingSet, candidate: ModelVersion, out_of_fold: OutOfFold
    ) -> PromotionDecision:
        active = self.load_active(present)
        if active is None:
            return decide_promotion(candidate, None, None, class_names=present.schema.class_names, n_withdrawn=0)
        if present is not training_set and active.version.reason == ROLLED_BACK:
            return PromotionDecision(
                promote=False, reason=f"somebody went back to {active.version.name} while it was trained"
            )
        comparison = None
        if set(training_set.schema.class_names) <= set(active.version.class_names):
            comparison = active.compare(out_of_fold, training_set.labelled, training_set.schema)
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
        if _is_unchanged(active, training_set.active):
            return training_set
        return read_training_set(self._database, self._policy, project_id)

    def conclude(
        self, training_set: TrainingSet, candidate: ModelVersion, out_of_fold: OutOfFold, judgement: Judgement
    ) -> str:
        """Promote or reject a candidate, and return the outcome in words.

        It is judged anew where another version became active since.
        """
        with self._database.transaction() as stores:
            is_current = _is_unchanged(stores.versions.active(candidate.project_id), judgement.active)
            if is_current:
                self._settle(stores, training_set, candidate, judgement.decision)
        if not is_current:
            return self.conclude(training_set, candidate, out_of_fold, self.judge(training_set, candidate, out_of_fold))
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

    def load_active(self, training_set: TrainingSet) -> ActiveVersion | None:
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
