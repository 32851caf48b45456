"""The answer to a request for suggestions: a feature look-up and a matrix product, whatever else goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from backend.domain import (
    Disclosure,
    JobKind,
    LabelSchema,
    ModelVersion,
    NoSuggestion,
    Project,
    ProjectSnapshot,
    Suggestion,
    Task,
)
from backend.errors import CheckpointCorrupt, Conflict, EmbedderUnavailable, NotFound
from backend.ports import ArtifactStore, Clock, Database, Embedder
from backend.pretrained import PretrainedVersion, Version, pretrained_version, version_in_use
from backend.promotion import version_key
from backend.remembered import RememberedSuggestions
from backend.scheduling import Scheduler
from model.checkpoint import CorruptCheckpoint, load_predictor
from model.inference import Predictor, Suggested, suggest_known

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = structlog.get_logger()

N_LOADED_VERSIONS = 16
N_AHEAD = 64
"""For so many images together a version takes little longer than for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One result per task asked for, in order, and the schema they are written in.

    ``n_unknown_images`` of the images had never been brought in before somebody asked now.
    """

    schema: LabelSchema | None
    results: tuple[Suggestion | NoSuggestion, ...]
    n_unknown_images: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request for suggestions, and the minute it came in."""

    snapshot: ProjectSnapshot
    tasks: tuple[Task, ...]
    minute: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What answers a question: the project, its version in use, and the tasks with what is known of their images."""

    project: Project
    version: Version | None
    tasks: tuple[Task, ...]


class FeatureSource(Protocol):
    """Features of tasks, looked up or made on the spot."""

    def features_of(
        self, project: Project, tasks: Sequence[Task], digest: str, deadline_s: float
    ) -> list[NDArray[np.float16] | str]:
        """Return for each task, with what is known of its image, its feature row, or the reason why there is none."""

    def features_around(self, digest: str, image_digest: str, n_images: int) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and feature rows of up to ``n_images`` images that were embedded next to one, and its own."""


class Prediction:
    """Suggests labels with the active version of each project."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        features: FeatureSource,
        embedder: Embedder,
        clock: Clock,
        scheduler: Scheduler,
        *,
        timeout_s: float,
        disclosure: Disclosure = Disclosure(),  # noqa: B008 - frozen
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._features = features
        self._embedder = embedder
        self._clock = clock
        self._scheduler = scheduler
        self._timeout_s = timeout_s
        self._disclosure = disclosure
        self._remembered = RememberedSuggestions()
        self._predictors: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def predict(self, snapshot: ProjectSnapshot, tasks: Sequence[Task]) -> Answer:
        """Return one suggestion, or the reason for none, per task and in the same order."""
        deadline_s = time.monotonic() + self._timeout_s
        minute = self._clock.now().replace(second=0, microsecond=0)
        known = self._look_up(Question(snapshot=snapshot, tasks=tuple(tasks), minute=minute))
        structlog.contextvars.bind_contextvars(
            project=known.project.id, version=known.version.name if known.version else None
        )
        results = self._results(known, deadline_s)
        refused = Counter(result.reason for result in results if isinstance(result, NoSuggestion))
        for reason, n_tasks in refused.items():
            log.info("no suggestion", project=known.project.id, n_tasks=n_tasks, reason=reason)
        n_unknown = sum(task.image_digest is None for task in known.tasks) if known.version else 0
        return Answer(schema=known.project.schema, results=tuple(results), n_unknown_images=n_unknown)

    def _results(self, known: Known, deadline_s: float) -> list[Suggestion | NoSuggestion]:
        project, version, tasks = known.project, known.version, known.tasks
        problem = None
        if project.schema is None:
            problem = project.label_config.problem or "the project's label config is not known yet"
        elif version is None:
            problem = "there is no version yet: label some more images"
        elif set(project.schema.class_names).isdisjoint(version.class_names):
            problem = f"{version.name} knows none of the classes in the label config: label some images with them"
        if problem is None and project.schema and version:
            try:
                return self._suggest_for_tasks(project, project.schema, version, tasks, deadline_s)
            except EmbedderUnavailable as error:
                problem = str(error)
            except CheckpointCorrupt as error:
                log.error("active version unreadable", project=project.id, version=version.name, reason=str(error))
                problem = f"{version.name} cannot be read and is being replaced"
                with self._database.transaction() as stores:
                    self._scheduler.soon(stores, project.id, JobKind.HEAD)
        return [NoSuggestion(task_id=task.id, reason=problem or "") for task in tasks]

    def predict_files(
        self, project_id: int, paths: Sequence[Path], embedder: Embedder
    ) -> list[Suggestion | NoSuggestion]:
        """Return a suggestion, or the reason for none, for each image file.

        Raises:
            NotFound: there is no such project.
            Conflict: it has no version yet.
            CheckpointCorrupt: its version cannot be read.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            active = stores.versions.active(project_id)
        if active is None or project.schema is None:
            raise Conflict(f"project {project_id} has no version yet: label some more images")
        embedded = embedder.embed([path.absolute() for path in paths], backbone_digest=active.backbone_digest)
        features = iter(embedded.features)
        rows = [embedded.problems.get(index) or next(features) for index in range(len(paths))]
        tasks = [Task(id=index, image_url=None) for index in range(len(paths))]
        return [
            _result(active, task, suggested)
            for task, suggested in zip(tasks, self._of_rows(active, project.schema, rows), strict=True)
        ]

    def suggest(
        self,
        version: Version,
        schema: LabelSchema,
        tasks: Sequence[Task],
        rows: Sequence[NDArray[np.float16] | str],
    ) -> list[Suggestion | NoSuggestion]:
        """Return one suggestion per task from feature rows; a row that is a reason becomes that refusal."""
        return [
            self.disclosed(version, task, suggested)
            for task, suggested in zip(tasks, self._of_rows(version, schema, rows), strict=True)
        ]

    def _suggest_for_tasks(
        self, project: Project, schema: LabelSchema, version: Version, tasks: Sequence[Task], deadline_s: float
    ) -> list[Suggestion | NoSuggestion]:
        """Return one suggestion per task from what is remembered of its image, else from its features."""
        remembered = self._remembered.of(version, schema)
        # An annotator asks for one task after the other.
        if len(tasks) == 1 and tasks[0].image_digest and tasks[0].image_digest not in remembered:
            digests, around = self._features.features_around(version.backbone_digest, tasks[0].image_digest, N_AHEAD)
            if digests:
                remembered.update(zip(digests, self._suggested(version, schema, around), strict=True))
        found = [remembered.get(task.image_digest or "") for task in tasks]
        others = [task for task, suggested in zip(tasks, found, strict=True) if suggested is None]
        rows = self._features.features_of(project, others, version.backbone_digest, deadline_s) if others else []
        of_others = iter(self._of_rows(version, schema, rows))
        return [
            self.disclosed(version, task, suggested or next(of_others))
            for task, suggested in zip(tasks, found, strict=True)
        ]

    def disclosed(self, version: Version, task: Task, suggested: Suggested | str) -> Suggestion | NoSuggestion:
        """Return what is suggested for a task.

        What annotators are not to see has no class, but its score: it still tells Label Studio what to ask first.
        """
        # Nobody has measured what is pretrained on this project's images.
        accuracy = version.metrics.accuracy if isinstance(version, ModelVersion) else 0.0
        if isinstance(suggested, Suggested) and not self._disclosure.shows(accuracy, task.image_url):
            suggested = replace(suggested, class_names=())
        return _result(version, task, suggested)

    def _of_rows(
        self, version: Version, schema: LabelSchema, rows: Sequence[NDArray[np.float16] | str]
    ) -> list[Suggested | str]:
        """Return what a version suggests for each feature row; a row that is a reason stays that."""
        known = [row for row in rows if not isinstance(row, str)]
        suggested = iter(self._suggested(version, schema, np.stack(known)) if known else ())
        return [row if isinstance(row, str) else next(suggested) for row in rows]

    def _suggested(self, version: Version, schema: LabelSchema, rows: NDArray[np.float16]) -> list[Suggested]:
        if isinstance(version, PretrainedVersion):
            digest = version.backbone_digest
            of_groups = self._embedder.classify(rows, version.categories, backbone_digest=digest)
            return suggest_known(of_groups, version.class_names)
        return self.predictor(version).suggest(rows, allowed=schema.class_names)

    def predictor(self, version: ModelVersion) -> Predictor:
        """Return a version ready to predict, loading it once.

        Raises:
            CheckpointCorrupt: it is incomplete, was altered, or is gone.
            StoreUnavailable: it is in a storage that does not answer.
        """
        predictor = self._loaded(version)
        if predictor is not None:
            return predictor
        # Loading may wait for a storage far away: whoever asks for another version goes on meanwhile.
        with self._loading:
            predictor = self._loaded(version) or self._load(version)
            with self._lock:
                self._predictors[version.name] = predictor
                while len(self._predictors) > N_LOADED_VERSIONS:
                    self._predictors.popitem(last=False)
        return predictor

    def _loaded(self, version: ModelVersion) -> Predictor | None:
        with self._lock:
            predictor = self._predictors.get(version.name)
            if predictor is not None:
                self._predictors.move_to_end(version.name)
            return predictor

    def _load(self, version: ModelVersion) -> Predictor:
        try:
            return load_predictor(self._artifacts.fetch(version_key(version.project_id, version.name)))
        except (CorruptCheckpoint, NotFound) as error:
            raise CheckpointCorrupt(f"{version.name} cannot be used: {error}; train again or roll back") from error

    def _look_up(self, question: Question) -> Known:
        """Return what answers the question, after storing what it tells that was not known: mostly nothing."""
        task_ids = [task.id for task in question.tasks]
        found = self._database.find(question.snapshot.identity, task_ids)
        if found is not None and not _tells_news(found.project, question):
            tasks, news = _merge(found.tasks, question)
            if not news:
                version = found.active or self._pretrained(found.project)
                return Known(project=found.project, version=version, tasks=tasks)
        with self._database.transaction() as stores:
            project = stores.projects.resolve(question.snapshot.identity)
            told = _told(project, question)
            if told.label_config != project.label_config:
                self._scheduler.soon(stores, project.id, JobKind.SYNC)
                self._scheduler.soon(stores, project.id, JobKind.HEAD)
                self._scheduler.replace_invalid(stores, project, told)
            if told != project:
                stores.projects.save(told)
            tasks, news = _merge(stores.tasks.get(project.id, task_ids), question)
            if news and stores.tasks.upsert(project.id, news):
                self._scheduler.soon(stores, project.id, JobKind.EMBED)
            return Known(project=told, version=version_in_use(stores, told), tasks=tasks)

    def _pretrained(self, project: Project) -> PretrainedVersion | None:
        with self._database.snapshot() as stores:
            return pretrained_version(stores, project)


def _result(version: Version, task: Task, suggested: Suggested | str) -> Suggestion | NoSuggestion:
    if isinstance(suggested, str):
        return NoSuggestion(task_id=task.id, reason=suggested)
    return Suggestion(task_id=task.id, class_names=suggested.class_names, score=suggested.score, version=version.name)


def _tells_news(project: Project, question: Question) -> bool:
    """Tell whether the question tells anything about the project that is not stored yet."""
    config = question.snapshot.label_config
    is_known = config is None or config == project.label_config
    return not is_known or project.predict_at is None or project.predict_at < question.minute


def _told(project: Project, question: Question) -> Project:
    """Return the project with what the question tells about it: its label config, and that somebody asks."""
    return replace(
        project,
        label_config=question.snapshot.label_config or project.label_config,
        predict_at=max(question.minute, project.predict_at or question.minute),
    )


def _merge(known_tasks: Sequence[Task], question: Question) -> tuple[tuple[Task, ...], list[Task]]:
    """Return the tasks asked for with what is known of their images, and those whose image is not known at all."""
    stored = {task.id: task for task in known_tasks}
    merged = []
    news = []
    for task in question.tasks:
        known = stored.get(task.id)
        # another image than the stored one: nothing is known of it
        is_known = known is not None and known.image_url == task.image_url
        merged.append(known if known is not None and is_known else task)
        if task.image_url and not is_known:
            news.append(task)
    return tuple(merged), news
