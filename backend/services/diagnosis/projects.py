"""Checks of each project: both ways between Label Studio and Tandem, its images, its jobs, its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from backend.domain import Job, JobKind, JobStatus, ModelVersion, Project, ProjectSnapshot, Sampling, Task
from backend.errors import ImageError, ImageForbidden, LabelStudioError, NotFound
from backend.ports import Clock, Database, ImageSource, LabelStudioGateway, LabelStudioInspector
from backend.services.diagnosis.findings import Check, Finding, Installation, failed, ok, skipped, warning

RECENT = timedelta(hours=1)
EVENT_TIMEOUT_S = 3.0
IMAGE_TIMEOUT_S = 20.0
N_PROBLEMS = 1000
NO_BACKBONE = "none"
"""The digest of no backbone: no task has features of it."""

CONNECT = "in Label Studio, Settings > Model > Connect Model, give Tandem's PUBLIC_URL"
SYNC = "tandem sync {project} makes or repairs the webhook"


ASKED_OF_LABEL_STUDIO = (
    Check.PROJECT,
    Check.CONNECTION,
    Check.WEBHOOK,
    Check.EVENTS,
    Check.MODEL_VERSION,
    Check.SAMPLING,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What Tandem's database holds of a project."""

    project: Project
    active: ModelVersion | None
    sample: Task | None
    n_tasks: int
    unreadable: tuple[Task, ...]
    jobs: tuple[Job, ...]


class ProjectChecks:
    """Asks Label Studio and Tandem's database about each project.

    ``asks`` says that Label Studio answers: else every project would wait for it in vain. ``may_write`` lets it save a
    project in Label Studio as it is, where nothing else proves that events come through.
    """

    def __init__(
        self,
        installation: Installation,
        database: Database,
        gateway: LabelStudioGateway | None,
        inspector: LabelStudioInspector | None,
        images: ImageSource,
        clock: Clock,
    ) -> None:
        self._installation = installation
        self._database = database
        self._gateway = gateway
        self._inspector = inspector
        self._images = images
        self._clock = clock

    def known(self) -> list[Known]:
        """Return what the database holds of every project.

        Raises:
            StoreUnavailable: it cannot be read.
        """
        found = []
        with self._database.snapshot() as stores:
            for project in stores.projects.all():
                samples = stores.tasks.to_embed(project.id, NO_BACKBONE, limit=1)
                found.append(
                    Known(
                        project=project,
                        active=stores.versions.active(project.id),
                        sample=samples[0] if samples else None,
                        n_tasks=stores.tasks.count(project.id),
                        unreadable=tuple(stores.tasks.problems(project.id, limit=N_PROBLEMS)),
                        jobs=tuple(stores.jobs.all(project.id)),
                    )
                )
        return found

    def run(self, known: Known, *, asks: bool, may_write: bool) -> Iterator[Finding]:
        """Make each check of one project."""
        project = known.project
        yield self._label_config(project)
        yield self._images_of(known)
        yield self._jobs(known)
        if self._gateway is None or self._inspector is None or not asks:
            for check in ASKED_OF_LABEL_STUDIO:
                yield skipped(check, "Label Studio cannot be asked", project=project.id)
            return
        try:
            snapshot = self._gateway.project(project.identity.label_studio_id)
        except LabelStudioError as error:
            remedy = f"if it was deleted there, tandem forget {project.id}; else give the API key's user access to it"
            yield failed(Check.PROJECT, f"Label Studio does not show it: {error}", remedy, project=project.id)
            return
        if snapshot.identity != project.identity:
            found = f"project {project.identity.label_studio_id} was deleted in Label Studio and made anew"
            remedy = f"tandem forget {project.id} removes what is kept of it; the new one has an id of its own"
            yield warning(Check.PROJECT, found, remedy, project=project.id)
            return
        yield ok(
            Check.PROJECT,
            f"{snapshot.title!r}, {known.n_tasks} of {snapshot.task_count} tasks known",
            project=project.id,
        )
        yield self._connection(self._inspector, project)
        yield self._webhook(self._gateway, project)
        yield self._events(self._inspector, project, may_write=may_write)
        yield self._model_version(known, snapshot)
        yield self._sampling(known, snapshot)

    # --- what Tandem knows

    def _label_config(self, project: Project) -> Finding:
        if project.schema is None:
            problem = project.label_config.problem or "it was not told to Tandem yet"
            remedy = "put one Choices control for one Image into the label config; then it is learned at once"
            return failed(Check.LABEL_CONFIG, problem, remedy, project=project.id)
        found = f"{len(project.schema.class_names)} classes of <Choices name={project.schema.control_name!r}>"
        note = project.label_config.note
        return ok(Check.LABEL_CONFIG, found + (f"; {note}" if note else ""), project=project.id)

    def _images_of(self, known: Known) -> Finding:
        """Fetch one image, and tell of those that could not be fetched."""
        project = known.project.id
        remedy = "see the reason; docs/doctor.md has one for each kind of source"
        if known.unreadable:
            first, n_unreadable = known.unreadable[0], len(known.unreadable)
            found = f"{n_unreadable} of {known.n_tasks} images cannot be used; task {first.id}: {first.image_problem}"
            check = failed if n_unreadable == known.n_tasks else warning
            return check(Check.IMAGES, found, remedy, project=project)
        if known.sample is None or known.sample.image_url is None:
            return skipped(Check.IMAGES, "no task with an image is known yet", project=project)
        try:
            self._images.fetch(known.sample.image_url, label_studio_task_id=known.sample.id, timeout_s=IMAGE_TIMEOUT_S)
        except ImageForbidden as error:
            remedy = "list the host in IMAGE_HOSTS, or correct LABEL_STUDIO_URL when it is Label Studio's"
            return failed(Check.IMAGES, f"task {known.sample.id}: {error}", remedy, project=project)
        except (ImageError, LabelStudioError) as error:
            return failed(Check.IMAGES, f"task {known.sample.id}: {error}", remedy, project=project)
        return ok(Check.IMAGES, f"the image of task {known.sample.id} came through", project=project)

    def _jobs(self, known: Known) -> Finding:
        newest: dict[JobKind, Job] = {}
        for job in known.jobs:
            newest.setdefault(job.kind, job)
        for job in newest.values():
            if job.status is JobStatus.FAILED:
                found = f"the last {job.kind.value} job failed: {job.reason}"
                remedy = "do what the reason says; tandem train and tandem sync try again"
                return failed(Check.JOBS, found, remedy, project=known.project.id)
        waiting = [job for job in newest.values() if job.status is JobStatus.QUEUED and job.attempts]
        if waiting:
            found = f"the {waiting[0].kind.value} job is tried again: {waiting[0].reason}"
            return warning(Check.JOBS, found, "do what the reason says", project=known.project.id)
        return ok(Check.JOBS, "none failed", project=known.project.id)

    # --- both directions

    def _connection(self, inspector: LabelStudioInspector, project: Project) -> Finding:
        """Let Label Studio call ``/health`` and ``/setup``: it does when its backends are listed."""
        try:
            backends = inspector.backends(project.identity.label_studio_id)
        except LabelStudioError as error:
            return skipped(Check.CONNECTION, f"its backends cannot be listed: {error}", project=project.id)
        url = self._installation.public_url
        ours = [backend for backend in backends if url and backend.url.rstrip("/") == url]
        if not ours:
            others = ", ".join(backend.url for backend in backends)
            if not backends:
                return failed(Check.CONNECTION, "no backend is connected in Label Studio", CONNECT, project=project.id)
            found = f"connected to {others}, and PUBLIC_URL is {url or 'not set'}"
            remedy = "make the two equal: PUBLIC_URL, and the URL in Settings > Model"
            return warning(Check.CONNECTION, found, remedy, project=project.id)
        if not ours[0].is_connected:
            remedy = "look whether Tandem runs, and open its URL from Label Studio's machine"
            if self._installation.uses_basic_auth:
                remedy += "; with Basic auth the user and password belong into Settings > Model"
            return failed(
                Check.CONNECTION, f"Label Studio does not reach {url}: {ours[0].problem}", remedy, project=project.id
            )
        return ok(Check.CONNECTION, f"Label Studio reached {url} just now", project=project.id)

    def _webhook(self, gateway: LabelStudioGateway, project: Project) -> Finding:
        url, remedy = f"{self._installation.public_url}/webhook", SYNC.format(project=project.id)
        if self._installation.public_url is None:
            return skipped(Check.WEBHOOK, "PUBLIC_URL is not set", project=project.id)
        try:
            hooks = gateway.webhooks(project.identity.label_studio_id)
        except LabelStudioError as error:
            return skipped(Check.WEBHOOK, f"the webhooks cannot be listed: {error}", project=project.id)
        hook = next((hook for hook in hooks if hook.url.rstrip("/") == url), None)
        if hook is None:
            return failed(Check.WEBHOOK, f"there is no webhook to {url}: labels come late", remedy, project=project.id)
        faults = [
            fault
            for fault, is_there in (
                ("is not active", not hook.is_active),
                ("sends no payload", not hook.sends_payload),
                ("leaves out some actions", not hook.all_actions),
                ("does not carry our secret", not hook.has_our_secret),
            )
            if is_there
        ]
        if faults:
            return failed(Check.WEBHOOK, f"the webhook to {url} {', '.join(faults)}", remedy, project=project.id)
        return ok(Check.WEBHOOK, f"to {url}: active, complete and with what Tandem asks for", project=project.id)

    def _events(self, inspector: LabelStudioInspector, project: Project, *, may_write: bool) -> Finding:
        """Tell when the last event came; where that is long ago, have Label Studio send one and wait for it."""
        before = self._clock.now()
        if project.event_at and before - project.event_at < RECENT:
            return ok(Check.EVENTS, f"the last one came at {project.event_at:%Y-%m-%d %H:%M} UTC", project=project.id)
        last = f"the last one came at {project.event_at:%Y-%m-%d %H:%M} UTC" if project.event_at else "none ever came"
        if not may_write:
            remedy = "without --read-only, Label Studio is made to send one"
            return warning(Check.EVENTS, last, remedy, project=project.id)
        try:
            inspector.send_event(project.identity.label_studio_id)
        except LabelStudioError as error:
            return skipped(
                Check.EVENTS, f"{last}; Label Studio was not willing to send one: {error}", project=project.id
            )
        if self._arrived_since(project):
            return ok(Check.EVENTS, "Label Studio was made to send one, and it came", project=project.id)
        found = f"{last}, nor did one that Label Studio was made to send"
        remedy = "see the checks of web server, webhook and webhook address; till then labels come by reconciliation"
        return failed(Check.EVENTS, found, remedy, project=project.id)

    def _arrived_since(self, project: Project) -> bool:
        deadline_s = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            with self._database.snapshot() as stores:
                try:
                    event_at = stores.projects.get(project.id).event_at
                except NotFound:
                    return False
            if event_at and event_at != project.event_at:
                return True
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.1)

    # --- what annotators see

    def _model_version(self, known: Known, snapshot: ProjectSnapshot) -> Finding:
        """Check that Label Studio's score column and its sampling look at the active version."""
        project, active = known.project.id, known.active
        if active is None:
            return skipped(Check.MODEL_VERSION, "there is no version yet", project=project)
        if snapshot.model_version == active.name:
            return ok(Check.MODEL_VERSION, f"Label Studio shows the scores of {active.name}", project=project)
        if not snapshot.model_version:
            found = "suggestions are switched off in Label Studio (Settings > Annotation)"
            return warning(
                Check.MODEL_VERSION, found, "choose a model version there if they are wanted", project=project
            )
        found = f"Label Studio looks at {snapshot.model_version!r}, not at {active.name}: no scores, random sampling"
        if not self._installation.pushes_predictions:
            return warning(Check.MODEL_VERSION, found, "set PUSH_PREDICTIONS=true", project=project)
        if known.project.pushed_version == active.name:
            remedy = "somebody chose it in Settings > Annotation: choose the newest version there again"
        else:
            remedy = f"wait for the next push; tandem sync {project} asks for one"
        return warning(Check.MODEL_VERSION, found, remedy, project=project)

    def _sampling(self, known: Known, snapshot: ProjectSnapshot) -> Finding:
        if known.active is None:
            return skipped(Check.SAMPLING, "there is no version yet", project=known.project.id)
        if snapshot.sampling is Sampling.UNCERTAINTY:
            return ok(Check.SAMPLING, "the least sure tasks come first", project=known.project.id)
        remedy = 'choose uncertainty sampling in Settings > Annotation, or label what the view "Label next" holds'
        found = f"the label stream goes by {snapshot.sampling or 'another'} sampling"
        return warning(Check.SAMPLING, found, remedy, project=known.project.id)
