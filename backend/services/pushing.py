"""Suggestions reach Label Studio: store them for every unlabelled task, move the pointer, clear away the old ones.

Uncertainty sampling and the score column of Label Studio's Community edition look only at stored predictions whose
version is the project's, so all three steps are needed, in this order.

The pointer is never moved to pretrained suggestions. Annotators see them without it, while it is the backend's title
and the backend says that this is its version; and uncertainty sampling, which would ask for the classes first that the
pretrained network does not know, and for long for nothing else, stays random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from backend.domain import LabelSchema, NoSuggestion, Progress, Project, Suggestion, Task, agreed_labels
from backend.ports import Database, FeatureStore, LabelStudioGateway, ReportProgress
from backend.pretrained import PretrainedVersion, Version, is_pretrained_name, is_version_name, version_in_use

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger()

CHUNK_SIZE = 500


class Suggester(Protocol):
    """Turns feature rows into suggestions."""

    def suggest(
        self,
        version: Version,
        schema: LabelSchema,
        tasks: Sequence[Task],
        rows: Sequence[NDArray[np.float16] | str],
    ) -> list[Suggestion | NoSuggestion]:
        """Return one suggestion per task, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The unlabelled tasks of a project, and the version that should suggest labels for them.

    ``n_pushed`` counts its suggestions in Label Studio, those of tasks with a label by now among them.
    """

    project: Project
    schema: LabelSchema
    version: Version
    tasks: tuple[Task, ...]
    n_pushed: int

    @property
    def waiting(self) -> list[Task]:
        """The tasks that Label Studio has no suggestion of this version for."""
        return [task for task in self.tasks if task.pushed_version != self.version.name]


class Pushing:
    """Keeps the predictions stored in Label Studio those of the active version."""

    def __init__(
        self,
        database: Database,
        features: FeatureStore,
        suggester: Suggester,
        gateway: LabelStudioGateway | None,
        *,
        public_url: str | None,
        enabled: bool,
    ) -> None:
        self._database = database
        self._features = features
        self._suggester = suggester
        self._gateway = gateway
        self._public_url = public_url
        self._enabled = enabled

    def run(self, project_id: int, report: ReportProgress) -> str:
        """Push the suggestions of the version in use for all unlabelled tasks that Label Studio has none of."""
        if not self._enabled:
            return "nothing pushed: PUSH_PREDICTIONS is off"
        if self._gateway is None:
            return "nothing pushed: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not set"
        pool = self._pool(project_id)
        if pool is None:
            return "nothing to push: there is no version yet, or the label config is not supported"
        pool = self._drop_half_push(self._gateway, pool)
        n_pushed = self._push(self._gateway, pool, report)
        stored = self._gateway.model_versions(pool.project.identity.label_studio_id)
        in_use = isinstance(pool.version, PretrainedVersion) or self._point(self._gateway, pool, stored)
        if in_use:
            self._record(pool)
        if in_use or pool.version.name in stored:
            self._clear(self._gateway, pool, stored)
        return f"{n_pushed} suggestions of {pool.version.name} pushed" + ("" if in_use else "; project uses another")

    def _pool(self, project_id: int) -> Pool | None:
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            version = version_in_use(stores, project)
            if version is None or project.schema is None:
                return None
            tasks = stores.tasks.all(project_id)
            labels = agreed_labels(stores.annotations.all(project_id), project.schema)
        return Pool(
            project=project,
            schema=project.schema,
            version=version,
            tasks=tuple(task for task in tasks if task.id not in labels and task.image_digest),
            n_pushed=sum(task.pushed_version == version.name for task in tasks),
        )

    def _drop_half_push(self, gateway: LabelStudioGateway, pool: Pool) -> Pool:
        """Start over when Label Studio does not hold the predictions of this version that we recorded.

        A push that was cut off between storing and recording, or an answer to a live request, would otherwise leave
        a task with two of them; predictions that were deleted would never come back.
        """
        stored = gateway.model_versions(pool.project.identity.label_studio_id).get(pool.version.name, 0)
        if stored == pool.n_pushed:
            return pool
        if stored:
            gateway.delete_predictions(pool.project.identity.label_studio_id, pool.version.name)
        with self._database.transaction() as stores:
            stores.tasks.forget_pushed(pool.project.id)
        return replace(pool, tasks=tuple(replace(task, pushed_version=None) for task in pool.tasks), n_pushed=0)

    def _push(self, gateway: LabelStudioGateway, pool: Pool, report: ReportProgress) -> int:
        waiting = pool.waiting
        n_pushed = 0
        for start in range(0, len(waiting), CHUNK_SIZE):
            report(Progress(done=start, total=len(waiting), unit="suggestions"))
            suggestions = self._suggestions(pool, waiting[start : start + CHUNK_SIZE])
            if suggestions:
                gateway.import_predictions(pool.project.identity.label_studio_id, pool.schema, suggestions)
            with self._database.transaction() as stores:
                task_ids = [suggestion.task_id for suggestion in suggestions]
                stores.tasks.record_pushed(pool.project.id, task_ids, pool.version.name)
            n_pushed += len(suggestions)
        return n_pushed

    def _suggestions(self, pool: Pool, tasks: Sequence[Task]) -> list[Suggestion]:
        digests = [task.image_digest or "" for task in tasks]
        rows, found = self._features.read(pool.version.backbone_digest, digests)
        embedded = [task for task, here in zip(tasks, found, strict=True) if here]
        results = self._suggester.suggest(pool.version, pool.schema, embedded, list(rows))
        return [result for result in results if isinstance(result, Suggestion)]

    def _point(self, gateway: LabelStudioGateway, pool: Pool, stored: dict[str, int]) -> bool:
        """Make the pushed version the project's, unless somebody chose something else by hand."""
        label_studio_id = pool.project.identity.label_studio_id
        current = gateway.project(label_studio_id).model_version
        if current is not None and self._is_chosen(gateway, pool.project, current, stored):
            log.info("pointer left alone", project=pool.project.id, version=current or "pre-annotation is off")
            return False
        if pool.version.name not in stored:
            return False
        if current != pool.version.name:
            gateway.set_model_version(label_studio_id, pool.version.name)
            log.info("suggestions pushed", project=pool.project.id, version=pool.version.name, was=current)
        return True

    def _is_chosen(
        self, gateway: LabelStudioGateway, project: Project, pointer: str, stored: Mapping[str, int]
    ) -> bool:
        """Tell whether somebody chose what the pointer names: nothing, predictions or a backend that are not ours."""
        if pointer == "":
            return True
        if is_version_name(project.id, pointer):
            return False
        if pointer in stored or self._public_url is None:
            return pointer in stored
        return pointer in gateway.titles_of_others(project.identity.label_studio_id, self._public_url)

    def _record(self, pool: Pool) -> None:
        with self._database.transaction() as stores:
            project = stores.projects.get(pool.project.id)
            stores.projects.save(replace(project, pushed_version=pool.version.name))

    def _clear(self, gateway: LabelStudioGateway, pool: Pool, stored: dict[str, int]) -> None:
        """Delete what superseded versions of ours left behind, and nothing else."""
        # A learned version that is not known (any more) is none that pretrained suggestions supersede.
        is_superseded = is_pretrained_name if isinstance(pool.version, PretrainedVersion) else is_version_name
        for version in stored:
            if version != pool.version.name and is_superseded(pool.project.id, version):
                gateway.delete_predictions(pool.project.identity.label_studio_id, version)
