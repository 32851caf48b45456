"""Services, the worker and what surrounds them, wired to the adapters."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from backend.adapters.database import SqlDatabase
from backend.adapters.executors import ProcessExecutor, ThreadExecutor
from backend.adapters.health import HttpHealth
from backend.adapters.machines import LocalMachine, in_container, make_writable
from backend.admission import Admission
from backend.bootstrap.adapters import Adapters
from backend.domain import Disclosure, JobKind, TrainingPolicy
from backend.label_studio.inspection import Inspection
from backend.measurements import counts
from backend.ports import ReportProgress
from backend.processes import one_linear_algebra_thread
from backend.routes.metrics import DatabaseMetrics, MachineMetrics
from backend.scheduling import Scheduler
from backend.services.backup import Backup
from backend.services.diagnosis.examination import Examination
from backend.services.diagnosis.findings import Installation
from backend.services.diagnosis.label_studio import LabelStudioChecks
from backend.services.diagnosis.machine import MachineChecks
from backend.services.diagnosis.projects import ProjectChecks
from backend.services.embedding import Embedding
from backend.services.ingestion import Ingestion
from backend.services.monitoring import Monitoring
from backend.services.prediction import Prediction
from backend.services.projects import Projects
from backend.services.promoting import Promoting
from backend.services.pushing import Pushing
from backend.services.reconciliation import Reconciliation
from backend.services.retention import Retention
from backend.services.review import Review
from backend.settings import Settings
from backend.worker import Lane, Worker

if TYPE_CHECKING:
    from backend.services.finetuning import FineTuning
    from backend.services.querying import Querying
    from backend.services.survey import Survey
    from backend.services.training import Training


STORAGE_PATIENCE_S = 1.0
"""How long a request may wait for features of other machines."""
QUICK_POLL_S = 0.2
"""How often to look for what an annotator waits for."""


class Container(Adapters):
    """Everything wired together, each part made when it is first asked for."""

    def __init__(self, settings: Settings, *, storage_patience_s: float = 600.0) -> None:
        """Wire for one process; ``storage_patience_s`` is how long it may wait for features of other machines."""
        super().__init__(settings, storage_patience_s=storage_patience_s)
        self.policy = TrainingPolicy(
            min_labels=settings.train_min_labels,
            finetune_min_labels=settings.finetune_min_labels,
            quiet_s=settings.train_quiet_s,
            max_wait_s=settings.train_max_wait_s,
        )
        self.scheduler = Scheduler(self.clock, self.policy)

    @cached_property
    def ingestion(self) -> Ingestion:
        """Events become rows."""
        return Ingestion(self.database, self.clock, self.scheduler)

    @cached_property
    def embedding(self) -> Embedding:
        """Images become features."""
        return Embedding(
            self.database,
            self.images,
            self.embedder,
            self.features,
            self.artifacts,
            self.scheduler,
            image_timeout_s=self.settings.image_timeout_s,
        )

    @cached_property
    def prediction(self) -> Prediction:
        """Features become suggestions."""
        return Prediction(
            self.database,
            self.artifacts,
            self.embedding,
            self.embedder,
            self.clock,
            self.scheduler,
            timeout_s=self.settings.predict_timeout_s,
            disclosure=Disclosure(
                min_accuracy=self.settings.suggest_min_accuracy, audit_share=self.settings.audit_share
            ),
        )

    @cached_property
    def admission(self) -> Admission:
        """How many requests for suggestions are taken on."""
        return Admission(self.settings.threads)

    @cached_property
    def promoting(self) -> Promoting:
        """One version of a project is the active one."""
        return Promoting(self.database, self.features, self.artifacts, self.scheduler, self.policy)

    @cached_property
    def training(self) -> Training:
        """Labels become versions; imported here, because the web process gets by without scikit-learn."""
        from backend.services.training import Training

        return Training(
            self.database, self.embedder, self.features, self.artifacts, self.clock, self.promoting, self.policy
        )

    @property
    def _training_states(self) -> Path:
        return self.settings.model_dir / "finetuning"

    @cached_property
    def finetuning(self) -> FineTuning:
        """Labels become networks; imported here, because only a fine-tuning's own process loads torch."""
        from backend.services.finetuning import FineTuning, FineTuningSettings

        return FineTuning(
            self.database,
            self.training,
            self.promoting,
            self.images,
            self.features,
            self.artifacts,
            FineTuningSettings(
                backbone=self.settings.backbone,
                weights=self.settings.weights,
                image_views=self.settings.image_views,
                device=self.settings.device,
                image_timeout_s=self.settings.image_timeout_s,
                max_image_pixels=self.settings.max_image_pixels,
                resume_folder=self._training_states,
            ),
        )

    @cached_property
    def pushing(self) -> Pushing:
        """Suggestions reach Label Studio."""
        return Pushing(
            self.database,
            self.features,
            self.prediction,
            self.gateway,
            public_url=self.settings.public_url,
            enabled=self.settings.push_predictions,
        )

    @cached_property
    def querying(self) -> Querying:
        """What is labelled next; imported here, because only the worker needs its arithmetic."""
        from backend.services.querying import Querying

        return Querying(
            self.database,
            self.features,
            self.prediction,
            self.review,
            self.gateway,
            strategy=self.settings.query_strategy,
            batch_size=self.settings.query_batch_size,
            enabled=self.settings.labelling_views,
        )

    @cached_property
    def reconciliation(self) -> Reconciliation:
        """Label Studio's truth reaches us."""
        return Reconciliation(
            self.database, self.gateway, self.clock, self.scheduler, public_url=self.settings.public_url
        )

    @cached_property
    def retention(self) -> Retention:
        """What nobody needs any more goes."""
        return Retention(
            self.database,
            self.artifacts,
            self.features,
            self.embedder,
            self.clock,
            self.scheduler,
            n_kept_versions=self.settings.versions_kept,
            training_states=self._training_states,
            cleanables=(self.artifacts, self.image_cache, self.feature_files),
        )

    def backup(self, *, empty: bool = False) -> Backup:
        """Everything out of this installation, or into an ``empty`` one, whose database is not to be touched yet."""
        make_writable(self.settings.model_dir)
        return Backup(
            SqlDatabase(self.settings.resolved_database_url) if empty else self.database,
            self.artifacts,
            self.features,
            self.settings.model_dir / "webhook_secret",
        )

    @cached_property
    def projects(self) -> Projects:
        """What people see and ask for."""
        return Projects(self.database, self.artifacts, self.clock, self.policy)

    @cached_property
    def review(self) -> Review:
        """What to look at again, and what more labels would bring."""
        return Review(self.database, self.artifacts)

    @cached_property
    def survey(self) -> Survey:
        """Near-duplicates and outliers; imported here, because few ask for them."""
        from backend.services.survey import Survey

        return Survey(self.database, self.features, self.artifacts)

    @cached_property
    def monitoring(self) -> Monitoring:
        """What operators watch."""
        return Monitoring(self.database, LocalMachine(self.settings.model_dir), self.clock)

    @cached_property
    def web_metrics(self) -> CollectorRegistry:
        """What Prometheus reads from the web process: the database, too."""
        return _registry(counts(), MachineMetrics(self.monitoring), DatabaseMetrics(self.monitoring, self.projects))

    @cached_property
    def worker_metrics(self) -> CollectorRegistry:
        """What Prometheus reads from a worker on its own: nothing that it reads from the web process already."""
        return _registry(counts(), MachineMetrics(self.monitoring))

    @cached_property
    def examination(self) -> Examination:
        """The doctor; it leaves the schema of the database as it is."""
        settings = self.settings
        installation = Installation(
            tandem_version=installed_version("tandem-label-studio"),
            torch_version=installed_version("torch"),
            label_studio_url=settings.label_studio_url,
            has_api_key=settings.label_studio_api_key is not None,
            public_url=settings.public_url,
            own_url=f"http://127.0.0.1:{settings.port}",
            uses_basic_auth=settings.basic_auth_user is not None,
            device=settings.device,
            backbone=settings.backbone,
            weights=settings.weights,
            pushes_predictions=settings.push_predictions,
            in_container=in_container(),
        )
        database = SqlDatabase(settings.resolved_database_url)
        inspector = None
        if settings.label_studio_url and settings.label_studio_api_key:
            api_key = settings.label_studio_api_key.get_secret_value()
            inspector = Inspection(settings.label_studio_url, api_key, ca_file=self._ca_file)
        health, clock = HttpHealth(self._ca_file), self.clock
        machine = LocalMachine(settings.model_dir)
        return Examination(
            MachineChecks(
                installation, database, self.artifacts, machine, self.embedder, self._load_backbone, health, clock
            ),
            LabelStudioChecks(installation, inspector, health, clock),
            ProjectChecks(installation, database, self.gateway, inspector, self.images, clock),
        )

    def _load_backbone(self) -> str:
        """Load the backbone as the embedding process would, and return what a user should know about it.

        Raises:
            ValueError: there is no such backbone, or the weights are not its own.
        """
        from model.backbones import load_backbone

        settings = self.settings
        weights = settings.weights if settings.weights in ("auto", "none") else Path(settings.weights)
        return load_backbone(settings.backbone, weights, n_views=settings.image_views).note

    @cached_property
    def job_handlers(self) -> dict[JobKind, Callable[[int, ReportProgress], str]]:
        """What runs each kind of job."""
        return {
            JobKind.SYNC: lambda project_id, report: self.reconciliation.run(project_id, report),
            JobKind.EMBED: lambda project_id, report: self.embedding.run(project_id, report),
            JobKind.HEAD: lambda project_id, report: self.training.fit_head(project_id, report),
            JobKind.FINETUNE: lambda project_id, report: self.finetuning.run(project_id, report),
            JobKind.PUSH: lambda project_id, report: self.pushing.run(project_id, report),
            JobKind.QUERY: lambda project_id, report: self.querying.run(project_id, report),
        }

    def warm_up_serving(self) -> None:
        """Do once what every web process forked afterwards would else do for itself, and leave nothing open."""
        _ = self.prediction, self.admission
        with self.database.snapshot() as stores:
            stores.projects.all()
        self.database.close()

    def warm_up_training(self) -> None:
        """Import and open what a training needs, before there is one."""
        _ = self.training, self.database

    def worker(self) -> Worker:
        """Return a worker with a lane for what waits, one for images, one for heads, one for fine-tuning."""
        in_thread = ThreadExecutor(self.job_handlers)
        # All of its linear algebra is loaded here, because its threads can only be limited afterwards.
        _ = self.querying
        one_linear_algebra_thread()
        self.retention.clean()
        heads = ProcessExecutor(keep_warm=True)
        heads.warm_up()
        return Worker(
            self.database,
            self.clock,
            self.scheduler,
            self.reconciliation,
            self.retention,
            [
                Lane(kinds=(JobKind.SYNC,), executor=in_thread),
                Lane(kinds=(JobKind.PUSH, JobKind.QUERY), executor=in_thread, poll_s=QUICK_POLL_S),
                Lane(kinds=(JobKind.EMBED,), executor=in_thread),
                Lane(kinds=(JobKind.HEAD,), executor=heads, poll_s=QUICK_POLL_S),
                Lane(kinds=(JobKind.FINETUNE,), executor=ProcessExecutor(keep_warm=False)),
            ],
            sync_interval_s=self.settings.sync_interval_s,
            job_history=timedelta(days=self.settings.jobs_kept_days),
        )


def _registry(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry
