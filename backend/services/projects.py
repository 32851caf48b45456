"""What people and scripts see of projects, versions and jobs, and what they may ask for."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from backend.domain import (
    Job,
    JobKind,
    JobStatus,
    LabelCounts,
    ModelVersion,
    Project,
    TrainingDecision,
    TrainingPolicy,
    VersionKind,
    agreed_labels,
    finetune_labels,
)
from backend.errors import Conflict, NotFound
from backend.ports import ArtifactStore, Clock, Database, Stores
from backend.pretrained import PretrainedVersion, pretrained_version
from backend.promotion import version_key
from model.checkpoint import CorruptCheckpoint, load_version_report
from model.reports import VersionReport

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOverview:
    """A project with the state of its labels, its active version and its jobs.

    ``pretrained`` is what suggests labels before the first version, if anything does.
    """

    project: Project
    n_tasks: int
    n_labels: int
    n_embedded: int
    n_unreadable: int
    active: ModelVersion | None
    pretrained: PretrainedVersion | None
    queued: tuple[JobKind, ...]
    running: tuple[JobKind, ...]
    decision: TrainingDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDetail:
    """A version with its report; without one ``problem`` says why."""

    version: ModelVersion
    report: VersionReport | None
    problem: str | None


class Projects:
    """Answers questions about projects and queues what people ask for."""

    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock, policy: TrainingPolicy) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock
        self._policy = policy

    def all(self) -> list[ProjectOverview]:
        """Return an overview of every project."""
        with self._database.snapshot() as stores:
            return [self._overview(stores, project) for project in stores.projects.all()]

    def get(self, project_id: int) -> ProjectOverview:
        """Return the overview of one project.

        Raises:
            NotFound: there is no such project.
        """
        with self._database.snapshot() as stores:
            return self._overview(stores, stores.projects.get(project_id))

    def versions(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions, newest first.

        Raises:
            NotFound: there is no such project.
        """
        with self._database.snapshot() as stores:
            stores.projects.get(project_id)
            return stores.versions.all(project_id)

    def version(self, project_id: int, name: str) -> VersionDetail:
        """Return one version with everything its checkpoint reports.

        Raises:
            NotFound: there is no such project or version.
        """
        with self._database.snapshot() as stores:
            version = stores.versions.get(project_id, name)
        try:
            report = load_version_report(self._artifacts.fetch(version_key(project_id, name)))
        except (CorruptCheckpoint, NotFound) as error:
            return VersionDetail(version=version, report=None, problem=str(error))
        return VersionDetail(version=version, report=report, problem=None)

    def jobs(self, project_id: int) -> list[Job]:
        """Return a project's jobs, newest first.

        Raises:
            NotFound: there is no such project.
        """
        with self._database.snapshot() as stores:
            stores.projects.get(project_id)
            return stores.jobs.all(project_id)

    def train(self, project_id: int, kind: VersionKind) -> Job:
        """Queue a training to start at once.

        Raises:
            NotFound: there is no such project.
            Conflict: its label config is not one that can be learned.
        """
        with self._database.transaction() as stores:
            project = stores.projects.get(project_id)
            if project.schema is None:
                raise Conflict(
                    project.label_config.problem or "the label config is not known yet: open the project once"
                )
            return stores.jobs.enqueue(project_id, JobKind(kind.value), self._clock.now(), self._clock.now())

    def sync(self, project_id: int) -> Job:
        """Queue a reconciliation to start at once.

        Raises:
            NotFound: there is no such project.
        """
        with self._database.transaction() as stores:
            stores.projects.get(project_id)
            return stores.jobs.enqueue(project_id, JobKind.SYNC, self._clock.now(), self._clock.now())

    def forget(self, project_id: int) -> None:
        """Remove all that is kept of a project; Label Studio keeps its own.

        Where it still has this backend connected, it is met anew at the next occasion. Files go first: interrupted,
        this can be asked for once more. Features and networks that nobody else needs go with the next clearing up.

        Raises:
            NotFound: there is no such project.
            Conflict: a job of it runs.
        """
        with self._database.snapshot() as stores:
            self._refuse_while_running(stores, project_id)
            versions = stores.versions.all(project_id)
        for version in versions:
            self._artifacts.delete(version_key(project_id, version.name))
        with self._database.transaction() as stores:
            self._refuse_while_running(stores, project_id)
            stores.projects.delete(project_id)
        log.info("project forgotten", project=project_id)

    def _refuse_while_running(self, stores: Stores, project_id: int) -> None:
        stores.projects.get(project_id)
        for job in stores.jobs.unfinished():
            if job.project_id == project_id and job.status is JobStatus.RUNNING:
                raise Conflict(f"{job.kind} job {job.id} of project {project_id} runs: cancel it, or wait for its end")

    def cancel(self, job_id: int) -> Job:
        """Cancel a job, or ask it to stop.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.transaction() as stores:
            return stores.jobs.cancel(job_id, self._clock.now())

    def job(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.snapshot() as stores:
            return stores.jobs.get(job_id)

    def _overview(self, stores: Stores, project: Project) -> ProjectOverview:
        labels = agreed_labels(stores.annotations.all(project.id), project.schema) if project.schema else {}
        versions = stores.versions.landmarks(project.id)
        active = stores.versions.active(project.id)
        jobs = stores.jobs.all(project.id)
        n_embedded = stores.tasks.count_embedded(project.id, project.backbone_digest)
        counts = LabelCounts(
            n_labels=len(labels),
            n_classes=len({name for label in labels.values() for name in label}),
            n_embedded_labels=min(len(labels), n_embedded),
            n_finetune_labels=finetune_labels(versions),
        )
        if project.schema is None:
            decision = TrainingDecision(next=None, reason=project.label_config.problem or "waiting for a label config")
        else:
            decision = self._policy.decide(counts, project.schema)
        return ProjectOverview(
            project=project,
            n_tasks=stores.tasks.count(project.id),
            n_labels=len(labels),
            n_embedded=n_embedded,
            n_unreadable=stores.tasks.count_problems(project.id),
            active=active,
            pretrained=None if active else pretrained_version(stores, project),
            queued=tuple(job.kind for job in jobs if job.status is JobStatus.QUEUED),
            running=tuple(job.kind for job in jobs if job.status is JobStatus.RUNNING),
            decision=decision,
        )
