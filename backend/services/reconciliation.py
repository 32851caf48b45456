"""Label Studio is the truth: its API brings in what events missed, and shows why events do not come."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

import structlog

from backend.domain import JobKind, LabelSchema, Progress, Project, ProjectSnapshot
from backend.errors import LabelStudioError, LabelStudioRejected
from backend.ports import Clock, Database, LabelStudioGateway, ReportProgress
from backend.pretrained import version_in_use
from backend.scheduling import Scheduler

log = structlog.get_logger()


class Reconciliation:
    """Makes our replica equal to Label Studio, and the webhook as it has to be."""

    def __init__(
        self,
        database: Database,
        gateway: LabelStudioGateway | None,
        clock: Clock,
        scheduler: Scheduler,
        *,
        public_url: str | None,
    ) -> None:
        self._database = database
        self._gateway = gateway
        self._clock = clock
        self._scheduler = scheduler
        self._public_url = public_url

    def discover(self) -> list[Project]:
        """Make known the projects that have this backend connected, as after a loss of all local state."""
        if self._gateway is None or self._public_url is None:
            return []
        found = []
        for label_studio_id in self._gateway.connected_projects(self._public_url):
            snapshot = self._gateway.project(label_studio_id)
            with self._database.transaction() as stores:
                found.append(self._observe(stores.projects.resolve(snapshot.identity), snapshot))
                stores.projects.save(found[-1])
                self._scheduler.now(stores, found[-1].id, JobKind.SYNC)
        return found

    def run(self, project_id: int, report: ReportProgress) -> str:
        """Bring in everything of one project.

        Raises:
            LabelStudioError: the API did not answer as it should; the project's problems say so too.
        """
        if self._gateway is None:
            problem = "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: without them images and missed labels stay away"
            self._note_problems(project_id, (problem,))
            with self._database.transaction() as stores:
                if stores.tasks.forgive_problems(project_id):
                    self._scheduler.now(stores, project_id, JobKind.EMBED)
            return problem
        try:
            return self._reconcile(self._gateway, project_id, report)
        except LabelStudioError as error:
            self._note_problems(project_id, (str(error),))
            raise

    def _reconcile(self, gateway: LabelStudioGateway, project_id: int, report: ReportProgress) -> str:
        with self._database.snapshot() as stores:
            project = known = stores.projects.get(project_id)
        try:
            snapshot = gateway.project(project.identity.label_studio_id)
        except LabelStudioRejected as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return self._tell_gone(project, "is not there, or not for this LABEL_STUDIO_API_KEY")
        if snapshot.identity != project.identity:
            return self._tell_gone(project, "was deleted and made anew")
        with self._database.transaction() as stores:
            stored = stores.projects.get(project_id)
            project = self._observe(stored, snapshot)
            stores.projects.save(project)
            self._scheduler.replace_invalid(stores, stored, project)
        problems = self._check_webhook(gateway, project)
        self._note_problems(project_id, tuple(problems))
        if project.schema is None:
            return f"nothing to learn: {project.label_config.problem}"
        changes = self._bring_in(gateway, project, project.schema, snapshot, report)
        if changes and not problems:
            self._note_problems(project_id, tuple(self._check_events(known)))
        with self._database.transaction() as stores:
            synced = replace(stores.projects.get(project_id), synced_at=self._clock.now())
            stores.projects.save(synced)
            forgiven = stores.tasks.forgive_problems(project_id)
            if (
                changes
                or forgiven
                or stores.tasks.count_embedded(project_id, project.backbone_digest) < stores.tasks.count(project_id)
            ):
                self._scheduler.now(stores, project_id, JobKind.EMBED)
            if changes or project.label_config != known.label_config:
                self._scheduler.now(stores, project_id, JobKind.HEAD)
            version = version_in_use(stores, synced)
            if version and version.name != synced.pushed_version:
                self._scheduler.push(stores, project_id)
        return f"{changes} changes brought in"

    def _tell_gone(self, project: Project, what: str) -> str:
        problem = (
            f"project {project.identity.label_studio_id} of Label Studio {what}: "
            f"tandem forget {project.id} removes what is kept of it"
        )
        self._note_problems(project.id, (problem,))
        return problem

    def _bring_in(
        self,
        gateway: LabelStudioGateway,
        project: Project,
        schema: LabelSchema,
        snapshot: ProjectSnapshot,
        report: ReportProgress,
    ) -> int:
        """Store all tasks and annotations, and delete those that are no longer there; return how many changed."""
        read_at = self._clock.now()
        with self._database.snapshot() as stores:
            missing_tasks = {task.id for task in stores.tasks.all(project.id)}
            missing_annotations = {annotation.id for annotation in stores.annotations.all(project.id)}
        changes = n_tasks = 0
        for page in gateway.annotated_tasks(project.identity.label_studio_id, schema):
            annotations = [annotation for entry in page for annotation in entry.annotations]
            with self._database.transaction() as stores:
                changes += stores.tasks.upsert(project.id, [entry.task for entry in page])
                changes += stores.annotations.upsert(project.id, annotations, read_at=read_at)
            missing_tasks -= {entry.task.id for entry in page}
            missing_annotations -= {annotation.id for annotation in annotations}
            n_tasks += len(page)
            report(Progress(done=n_tasks, total=max(n_tasks, snapshot.task_count or 0), unit="tasks"))
        with self._database.transaction() as stores:
            changes += stores.annotations.delete(project.id, sorted(missing_annotations), read_at)
            changes += stores.tasks.delete(project.id, sorted(missing_tasks))
        return changes

    def _check_webhook(self, gateway: LabelStudioGateway, project: Project) -> list[str]:
        """Create or repair the webhook, and return what is wrong with it in plain words."""
        if self._public_url is None:
            return ["set PUBLIC_URL to how Label Studio reaches Tandem: without it the webhook cannot be checked"]
        url = f"{self._public_url}/webhook"
        label_studio_id = project.identity.label_studio_id
        try:
            webhook = next((hook for hook in gateway.webhooks(label_studio_id) if hook.url.rstrip("/") == url), None)
            if webhook is None:
                gateway.create_webhook(label_studio_id, url)
                log.warning("webhook was missing and has been created", project=project.id, url=url)
            elif not (webhook.is_active and webhook.sends_payload and webhook.all_actions and webhook.has_our_secret):
                gateway.repair_webhook(label_studio_id, webhook)
                log.warning("webhook has been repaired", project=project.id, url=url)
        except LabelStudioError as error:
            problem = (
                f"the webhook to {url} cannot be checked or made: {error}. Labels come in by reconciliation only. "
                "Private addresses need SSRF_PROTECTION_ENABLED=false on Label Studio, and host names need a dot"
            )
            log.error("webhook cannot be made", project=project.id, problem=problem)
            return [problem]
        return []

    def _check_events(self, known: Project) -> list[str]:
        """Return what is wrong when something changed since the last reconciliation and not one event told of it."""
        if known.synced_at is None or (known.event_at and known.event_at > known.synced_at):
            return []
        return [
            f"labels or tasks changed since {known.synced_at:%Y-%m-%d %H:%M} UTC, and no event came: unless they were "
            f"deleted or imported through the API, Label Studio does not reach {self._public_url}/webhook. Check "
            "PUBLIC_URL from Label Studio's machine, and SSRF_PROTECTION_ENABLED=false there for a private address"
        ]

    def _observe(self, project: Project, snapshot: ProjectSnapshot) -> Project:
        return replace(
            project,
            title=project.title if snapshot.title is None else snapshot.title,
            label_config=snapshot.label_config or project.label_config,
        )

    def _note_problems(self, project_id: int, problems: tuple[str, ...]) -> None:
        with self._database.transaction() as stores:
            project = stores.projects.get(project_id)
            if project.problems != problems:
                stores.projects.save(replace(project, problems=problems))
                for problem in problems:
                    log.warning("problem with the connection", project=project_id, problem=problem)
