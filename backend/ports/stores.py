"""State as rows: what is known of projects, tasks, annotations, jobs and versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from backend.domain import (
    Annotation,
    Job,
    JobKind,
    JobStatus,
    JobTally,
    KeptView,
    ModelVersion,
    Progress,
    Project,
    ProjectIdentity,
    Task,
    ViewKind,
)


class ProjectStore(Protocol):
    """Projects."""

    def resolve(self, identity: ProjectIdentity) -> Project:
        """Return the project with this identity; make it when it was never seen.

        An identity without a creation time is the newest project with its id, and one stored without it gets it as
        soon as it is told. A new project takes Label Studio's id as its own, or, when another project has that, an id
        of its own above one million.
        """

    def find(self, identity: ProjectIdentity) -> Project | None:
        """Return the project that ``resolve`` would return without having to store anything, if there is one."""

    def get(self, project_id: int) -> Project:
        """Return a project.

        Raises:
            NotFound: there is none with this id.
        """

    def all(self) -> list[Project]:
        """Return all projects by id."""

    def save(self, project: Project) -> None:
        """Store all fields of a known project."""

    def delete(self, project_id: int) -> None:
        """Remove a project with its tasks, annotations, jobs, versions and views.

        Raises:
            NotFound: there is none with this id.
        """


class TaskStore(Protocol):
    """Replica of the tasks of each project."""

    def upsert(self, project_id: int, tasks: Sequence[Task]) -> int:
        """Store ``id`` and ``image_url`` of each task and return how many were new or changed.

        A changed ``image_url`` clears what was known of the old image; an unchanged task keeps it. A task id used
        again for another image therefore starts anew.
        """

    def delete(self, project_id: int, task_ids: Sequence[int]) -> int:
        """Remove tasks and their annotations; unknown ids are ignored. Return how many tasks were removed."""

    def get(self, project_id: int, task_ids: Sequence[int]) -> list[Task]:
        """Return the known ones among these tasks, by id."""

    def all(self, project_id: int) -> list[Task]:
        """Return all tasks of a project, by id."""

    def to_embed(self, project_id: int, backbone_digest: str | None, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks with an image but no features of this backbone; labelled tasks first.

        Tasks whose image has a problem are left out.
        """

    def record_image(self, project_id: int, task: Task) -> None:
        """Store digest, problem and backbone digest of the task's image, if the task still has that ``image_url``."""

    def forgive_problems(self, project_id: int) -> int:
        """Clear the image problems of a project, so that its images are tried again; return how many."""

    def record_pushed(self, project_id: int, task_ids: Sequence[int], version: str) -> None:
        """Store that Label Studio holds this version's suggestion for these tasks."""

    def forget_pushed(self, project_id: int) -> None:
        """Store that Label Studio holds no suggestion of ours for any task."""

    def record_drawn(self, project_id: int, task_ids: Sequence[int]) -> None:
        """Store that chance alone chose these tasks to be labelled."""

    def count(self, project_id: int) -> int:
        """Return the number of tasks."""

    def count_embedded(self, project_id: int, backbone_digest: str | None) -> int:
        """Return the number of tasks with features of this backbone."""

    def count_problems(self, project_id: int) -> int:
        """Return the number of tasks whose image has a problem."""

    def problems(self, project_id: int, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks whose image has a problem, by id."""


class AnnotationStore(Protocol):
    """Replica of the annotations of each project, keyed by annotation id; the newest ``updated_at`` wins."""

    def upsert(self, project_id: int, annotations: Sequence[Annotation], *, read_at: datetime | None = None) -> int:
        """Store annotations and return how many changed something.

        An annotation older than the stored one is ignored, and so is one that was deleted and not changed since;
        but Label Studio's API is the truth: ``read_at`` says when it began to list these annotations, and revives
        those deleted before.
        """

    def delete(self, project_id: int, annotation_ids: Sequence[int], deleted_at: datetime) -> int:
        """Mark annotations as deleted, known or not, so that late events cannot revive them.

        Returns:
            How many live annotations were deleted.
        """

    def all(self, project_id: int) -> list[Annotation]:
        """Return all live annotations of tasks that are known, by id."""


class JobStore(Protocol):
    """Jobs as rows: at most one queued and one running per project and kind."""

    def enqueue(self, project_id: int, kind: JobKind, run_after: datetime, now: datetime) -> Job:
        """Queue a job, or move the one already queued to ``run_after``; return it."""

    def queued(self, project_id: int, kind: JobKind) -> Job | None:
        """Return the queued job of this kind, if any."""

    def claim(self, kinds: Sequence[JobKind], worker: str, now: datetime, lease_until: datetime) -> Job | None:
        """Take the queued job that has waited longest past its ``run_after``; ``None`` when none is due.

        A job whose project already runs one of the same kind is not due. Counts an attempt.
        """

    def is_due(self, kinds: Sequence[JobKind], now: datetime) -> bool:
        """Tell whether there is a job to claim, without keeping writers waiting."""

    def renew(self, job_id: int, worker: str, lease_until: datetime, progress: Progress | None) -> Job:
        """Extend the lease, store the progress and return the job, with ``cancel_requested`` as it now is.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def finish(self, job_id: int, worker: str, status: JobStatus, reason: str | None, now: datetime) -> None:
        """Store the outcome.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def requeue(self, job_id: int, worker: str, run_after: datetime, reason: str | None) -> None:
        """Put a running job back into the queue, merging it with one queued meanwhile; keeps its attempts.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def shorten_waits(self, latest_lease: datetime, latest_start: datetime) -> None:
        """Let no lease and no wait of a queued job reach further than that: the clock has gone back since."""

    def release(self, job_id: int, worker: str, now: datetime, reason: str | None) -> None:
        """Put a running job back into the queue as if it had never been claimed: the attempt does not count.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def requeue_expired(self, now: datetime) -> list[Job]:
        """Put running jobs whose lease has passed back into the queue and return them."""

    def cancel(self, job_id: int, now: datetime) -> Job:
        """Cancel a queued job at once, ask a running one to stop; finished ones stay as they are.

        Raises:
            NotFound: there is no such job.
        """

    def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFound: there is no such job.
        """

    def all(self, project_id: int, limit: int = 100) -> list[Job]:
        """Return a project's newest jobs, newest first, and then those that have not ended for longer than that."""

    def running(self, project_id: int, kind: JobKind) -> Job | None:
        """Return the running job of this kind, if any."""

    def newest(self, project_id: int, kind: JobKind) -> Job | None:
        """Return a project's newest job of a kind, if any."""

    def unfinished(self) -> list[Job]:
        """Return the queued and running jobs of all projects, by id."""

    def tallies(self) -> list[JobTally]:
        """Return how many jobs ended how, and after how long, since the database was made."""

    def prune(self, finished_before: datetime) -> int:
        """Delete final jobs that finished before a moment; return how many."""


class VersionStore(Protocol):
    """Model versions; numbers only grow, at most one per project is active."""

    def next_number(self, project_id: int) -> int:
        """Reserve and return the next version number of a project; never the same twice."""

    def add(self, version: ModelVersion) -> None:
        """Store a new version."""

    def active(self, project_id: int) -> ModelVersion | None:
        """Return the active version, if any."""

    def get(self, project_id: int, name: str) -> ModelVersion:
        """Return a version by name.

        Raises:
            NotFound: the project has no such version.
        """

    def all(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions, newest first."""

    def landmarks(self, project_id: int) -> list[ModelVersion]:
        """Return those of a project's versions that say what to train next, newest first.

        These are the active one, the newest that was judged, the newest on each backbone, and all with a network
        fine-tuned for them.
        """

    def candidates(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions of which nobody has decided yet what they are worth, newest first."""

    def activate(self, project_id: int, name: str, reason: str) -> ModelVersion:
        """Make a version the active one, retire the one that was, and return it with its new status.

        Raises:
            NotFound: the project has no such version.
        """

    def reject(self, project_id: int, name: str, reason: str) -> None:
        """Mark a candidate as rejected."""


class ViewStore(Protocol):
    """The views of Label Studio's Data Manager that Tandem made: at most one per project and kind."""

    def get(self, project_id: int, kind: ViewKind) -> KeptView | None:
        """Return the view of this kind, if one was ever made."""

    def save(self, project_id: int, view: KeptView) -> None:
        """Store what is known of a view now."""


class BackboneStore(Protocol):
    """What is known of pretrained backbones, by their digest."""

    def categories(self, digest: str) -> tuple[str, ...]:
        """Return what the classifier that a backbone was pretrained with tells apart; nothing where none is known."""

    def save_categories(self, digest: str, categories: tuple[str, ...]) -> None:
        """Store what the classifier that a backbone was pretrained with tells apart."""


class Stores(Protocol):
    """All stores, sharing one transaction."""

    projects: ProjectStore
    tasks: TaskStore
    annotations: AnnotationStore
    jobs: JobStore
    versions: VersionStore
    views: ViewStore
    backbones: BackboneStore
