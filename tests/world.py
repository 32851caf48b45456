"""All services wired together: a real database, features and artifacts on disk, fakes for the rest of the world."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.database import SqlDatabase
from backend.adapters.features import FeatureFiles
from backend.domain import (
    Annotation,
    AnnotationsDeleted,
    AnnotationsSeen,
    Disclosure,
    Job,
    JobKind,
    JobStatus,
    LabelConfig,
    ModelVersion,
    Project,
    ProjectSeen,
    Task,
    TasksSeen,
    TrainingPolicy,
)
from backend.ports import ArtifactStore, FeatureStore
from backend.scheduling import Scheduler
from backend.services.embedding import Embedding
from backend.services.ingestion import Ingestion
from backend.services.prediction import Answer, Prediction
from backend.services.projects import Projects
from backend.services.promoting import Promoting
from backend.services.pushing import Pushing
from backend.services.querying import Querying
from backend.services.reconciliation import Reconciliation
from backend.services.retention import Retention
from backend.services.review import Review
from backend.services.training import Training
from tests.factories import make_annotation, make_config, make_snapshot, make_task
from tests.fakes import FakeClock, FakeEmbedder, FakeGateway, FakeImages, Reports

PUBLIC_URL = "http://tandem.test:9090"
PROJECT = 5


class World:
    """One project in Label Studio and in Tandem; tasks are pictures of the class they are named after.

    ``label`` and the like send the events that Label Studio would send; nothing runs by itself.
    """

    def __init__(
        self,
        folder: Path,
        database: SqlDatabase,
        *,
        artifacts: ArtifactStore | None = None,
        features: FeatureStore | None = None,
    ) -> None:
        self.folder = folder
        self.database = database
        self.clock = FakeClock()
        self.images = FakeImages(folder / "images")
        self.embedder = FakeEmbedder()
        self.gateway = FakeGateway()
        self.features = features or FeatureFiles(folder / "features")
        self.artifacts = artifacts or LocalArtifacts(folder / "artifacts")
        self.policy = TrainingPolicy(min_labels=4, finetune_min_labels=50, quiet_s=1, max_wait_s=10)
        self.scheduler = Scheduler(self.clock, self.policy)
        self.ingestion = Ingestion(database, self.clock, self.scheduler)
        self.embedding = Embedding(
            database,
            self.images,
            self.embedder,
            self.features,
            self.artifacts,
            self.scheduler,
            image_timeout_s=1,
        )
        self.promoting = Promoting(database, self.features, self.artifacts, self.scheduler, self.policy)
        self.training = Training(
            database, self.embedder, self.features, self.artifacts, self.clock, self.promoting, self.policy
        )
        self.prediction = self.new_prediction()
        self.pushing = self.new_pushing()
        self.review = Review(database, self.artifacts)
        self.querying = self.new_querying()
        self.reconciliation = Reconciliation(database, self.gateway, self.clock, self.scheduler, public_url=PUBLIC_URL)
        self.retention = Retention(
            database,
            self.artifacts,
            self.features,
            self.embedder,
            self.clock,
            self.scheduler,
            n_kept_versions=5,
            training_states=folder / "finetuning",
            cleanables=(LocalArtifacts(folder / "artifacts"), FeatureFiles(folder / "features")),
        )
        self.projects = Projects(database, self.artifacts, self.clock, self.policy)
        self.snapshot = make_snapshot()
        self.label_studio = self.gateway.add_project(self.snapshot, backend_url=PUBLIC_URL)
        self.reports = Reports()

    def new_prediction(self, disclosure: Disclosure | None = None) -> Prediction:
        """What a freshly started web process has: nothing loaded."""
        return Prediction(
            self.database,
            self.artifacts,
            self.embedding,
            self.embedder,
            self.clock,
            self.scheduler,
            timeout_s=5,
            disclosure=disclosure or Disclosure(),
        )

    def new_pushing(
        self, *, with_gateway: bool = True, public_url: str | None = PUBLIC_URL, enabled: bool = True
    ) -> Pushing:
        gateway = self.gateway if with_gateway else None
        return Pushing(self.database, self.features, self.prediction, gateway, public_url=public_url, enabled=enabled)

    def new_querying(self, *, strategy: str = "tandem", enabled: bool = True, batch_size: int = 4) -> Querying:
        return Querying(
            self.database,
            self.features,
            self.prediction,
            self.review,
            self.gateway,
            strategy=strategy,
            batch_size=batch_size,
            enabled=enabled,
        )

    # --- what happens in Label Studio

    def configure(self, label_config: LabelConfig) -> None:
        self.snapshot = make_snapshot(label_config)
        self.label_studio.label_config = label_config
        self.ingestion.handle(ProjectSeen(project=self.snapshot))

    def see_tasks(self, names: Mapping[int, str]) -> list[Task]:
        tasks = [make_task(task_id, name) for task_id, name in names.items()]
        self.label_studio.tasks |= {task.id: task for task in tasks}
        self.ingestion.handle(TasksSeen(project=self.snapshot, tasks=tuple(tasks)))
        return tasks

    def label(self, labels: Mapping[int, str | tuple[str, ...]]) -> list[Annotation]:
        """Label tasks; annotation 100 + n is that of task n."""
        given = [
            make_annotation(100 + task_id, task_id, *self._names(label), updated_at=self.clock.now())
            for task_id, label in labels.items()
        ]
        self.label_studio.annotations |= {each.id: each for each in given}
        self.ingestion.handle(AnnotationsSeen(project=self.snapshot, tasks=(), annotations=tuple(given)))
        return given

    def unlabel(self, *task_ids: int) -> None:
        ids = tuple(100 + task_id for task_id in task_ids)
        for annotation_id in ids:
            del self.label_studio.annotations[annotation_id]
        self.ingestion.handle(AnnotationsDeleted(project=self.snapshot, annotation_ids=ids))

    def _names(self, label: str | tuple[str, ...]) -> tuple[str, ...]:
        return (label,) if isinstance(label, str) else label

    # --- what Tandem does

    def embed(self) -> str:
        return self.embedding.run(PROJECT, self.reports)

    def fit(self) -> str:
        return self.training.fit_head(PROJECT, self.reports)

    def push(self) -> str:
        return self.pushing.run(PROJECT, self.reports)

    def query(self) -> str:
        return self.querying.run(PROJECT, self.reports)

    def sync(self) -> str:
        return self.reconciliation.run(PROJECT, self.reports)

    def predict(self, *tasks: Task) -> Answer:
        return self.prediction.predict(self.snapshot, tasks)

    def learn(self, names: Mapping[int, str]) -> ModelVersion:
        """See, label, embed and fit; return the active version."""
        self.see_tasks(names)
        self.label(names)
        self.embed()
        self.fit()
        return self.active

    # --- what there is

    @property
    def project(self) -> Project:
        with self.database.snapshot() as stores:
            return stores.projects.get(PROJECT)

    @property
    def active(self) -> ModelVersion:
        with self.database.snapshot() as stores:
            active = stores.versions.active(PROJECT)
        assert active is not None
        return active

    @property
    def versions(self) -> list[ModelVersion]:
        with self.database.snapshot() as stores:
            return stores.versions.all(PROJECT)

    @property
    def tasks(self) -> dict[int, Task]:
        with self.database.snapshot() as stores:
            return {task.id: task for task in stores.tasks.all(PROJECT)}

    @property
    def annotations(self) -> dict[int, tuple[str, ...]]:
        with self.database.snapshot() as stores:
            return {each.id: each.class_names for each in stores.annotations.all(PROJECT)}

    def queued(self, kind: JobKind) -> Job | None:
        with self.database.snapshot() as stores:
            return stores.jobs.queued(PROJECT, kind)

    def run_after(self, kind: JobKind) -> datetime:
        job = self.queued(kind)
        assert job is not None, f"no {kind} job is queued"
        return job.run_after

    def finish_jobs(self) -> None:
        """Take all queued jobs and end them, as if they had been run."""
        with self.database.transaction() as stores:
            later = self.clock.forward(60)
            while job := stores.jobs.claim(list(JobKind), "test", later, later):
                stores.jobs.finish(job.id, "test", status=JobStatus.SUCCEEDED, reason=None, now=later)


def pets(n: int, *, start: int = 1) -> dict[int, str]:
    """Task ids from ``start``, cats and dogs in turn."""
    return {task_id: ("cat", "dog")[task_id % 2] for task_id in range(start, start + n)}


CATS_DOGS_BIRDS = make_config("cat", "dog", "bird")
