"""Label Studio's events become rows, within milliseconds: nothing is learned, fetched or counted here."""

from __future__ import annotations

from dataclasses import replace

import structlog

from backend.domain import (
    AnnotationsDeleted,
    AnnotationsSeen,
    Event,
    Job,
    JobKind,
    Project,
    ProjectSeen,
    ProjectSnapshot,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.ports import Clock, Database, Stores
from backend.pretrained import expected_name
from backend.scheduling import Scheduler

log = structlog.get_logger()


class Ingestion:
    """Stores what Label Studio tells, and queues the work that follows from it."""

    def __init__(self, database: Database, clock: Clock, scheduler: Scheduler) -> None:
        self._database = database
        self._clock = clock
        self._scheduler = scheduler

    def setup(self, snapshot: ProjectSnapshot) -> str:
        """Take note of a project and return the model version that Label Studio should expect."""
        with self._database.transaction() as stores:
            return expected_name(stores, self.observe(stores, snapshot))

    def handle(self, event: Event) -> Job | None:
        """Store an event durably; return the job that was queued for it, where somebody asked for a training.

        When this returns, the event is in the database: a crash any moment later loses nothing.
        """
        project_id = job = None
        with self._database.transaction() as stores:
            if event.project is None:
                self._suspect_all(stores)
            else:
                project = self.observe(stores, event.project, is_event=True)
                project_id = project.id
                job = self._store(stores, project, event)
        log.info("event stored", event_type=type(event).__name__, project=project_id, job=job.id if job else None)
        return job

    def observe(self, stores: Stores, snapshot: ProjectSnapshot, *, is_event: bool = False) -> Project:
        """Store what a message says about its project; a new project or label config is reconciled."""
        known = stores.projects.resolve(snapshot.identity)
        structlog.contextvars.bind_contextvars(project=known.id)
        project = replace(
            known,
            title=known.title if snapshot.title is None else snapshot.title,
            label_config=snapshot.label_config or known.label_config,
            event_at=self._clock.now() if is_event else known.event_at,
        )
        if project != known:
            stores.projects.save(project)
        if project.label_config != known.label_config:
            log.info(
                "label config changed",
                project=project.id,
                problem=project.label_config.problem,
                note=project.label_config.note,
            )
            self._scheduler.now(stores, project.id, JobKind.SYNC)
            self._scheduler.soon(stores, project.id, JobKind.HEAD)
            self._scheduler.replace_invalid(stores, known, project)
        return project

    def _store(self, stores: Stores, project: Project, event: Event) -> Job | None:
        match event:
            case TasksSeen(tasks=tasks):
                self._follow_up(stores, project, JobKind.EMBED, stores.tasks.upsert(project.id, tasks))
            case AnnotationsSeen(tasks=tasks, annotations=annotations):
                self._follow_up(stores, project, JobKind.EMBED, stores.tasks.upsert(project.id, tasks))
                self._follow_up(stores, project, JobKind.HEAD, stores.annotations.upsert(project.id, annotations))
            case AnnotationsDeleted(annotation_ids=ids):
                n_deleted = stores.annotations.delete(project.id, ids, self._clock.now())
                self._follow_up(stores, project, JobKind.HEAD, n_deleted)
            case TasksDeleted(task_ids=ids):
                self._follow_up(stores, project, JobKind.HEAD, stores.tasks.delete(project.id, ids))
            case TrainingRequested():
                self._scheduler.soon(stores, project.id, JobKind.SYNC)
                return self._scheduler.soon(stores, project.id, JobKind.HEAD)
            case UnclearEvent():
                self._scheduler.soon(stores, project.id, JobKind.SYNC)
            case ProjectSeen():
                pass
        return None

    def _follow_up(self, stores: Stores, project: Project, kind: JobKind, n_changes: int) -> None:
        if n_changes:
            self._scheduler.soon(stores, project.id, kind)
            if kind is JobKind.HEAD and stores.versions.active(project.id) is None:
                # Later a push does it; but what to label next depends on the first labels too.
                self._scheduler.soon(stores, project.id, JobKind.QUERY)

    def _suspect_all(self, stores: Stores) -> None:
        for project in stores.projects.all():
            self._scheduler.soon(stores, project.id, JobKind.SYNC)
