"""Everything that Prometheus reads: what was counted, this machine, and the state of all projects at this moment."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Protocol

import structlog
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from backend.domain import JOB_DURATION_BOUNDS_S, Job, JobKind, JobStatus, JobTally
from backend.errors import StoreUnavailable
from backend.ports import EmbedderState
from backend.services.monitoring import Monitoring
from backend.services.projects import ProjectOverview

log = structlog.get_logger()

REST_FACTOR = 20.0
"""A hundred thousand labels take a second to count, in which annotators would wait; so it is not done all the time."""


class Overviews(Protocol):
    """What knows all projects."""

    def all(self) -> list[ProjectOverview]:
        """Return an overview of every project."""


class MachineMetrics(Collector):
    """This machine and the processes of this supervisor."""

    def __init__(self, monitoring: Monitoring) -> None:
        self._monitoring = monitoring

    def collect(self) -> Iterator[Metric]:
        """Look at the machine now."""
        machine = self._monitoring.machine()
        about = GaugeMetricFamily("tandem_build_info", "Always 1; the version of Tandem", labels=["version"])
        about.add_metric([version("tandem-label-studio")], 1)
        yield about
        yield _gauge(
            "tandem_embedder_up",
            "Whether the embedding process of this machine answers",
            machine.embedder is EmbedderState.UP,
        )
        yield _gauge("tandem_disk_free_bytes", "Room left on the disk of MODEL_DIR", machine.disk.free_bytes)
        yield _gauge("tandem_disk_total_bytes", "Size of the disk of MODEL_DIR", machine.disk.total_bytes)
        used = GaugeMetricFamily("tandem_gpu_memory_used_bytes", "GPU memory in use, by whomever", labels=["gpu"])
        total = GaugeMetricFamily("tandem_gpu_memory_total_bytes", "Size of a GPU's memory", labels=["gpu"])
        for gpu in machine.gpus:
            used.add_metric([str(gpu.index)], gpu.used_bytes)
            total.add_metric([str(gpu.index)], gpu.total_bytes)
        yield used
        yield total


class DatabaseMetrics(Collector):
    """What the database knows, the same from whichever process: projects, jobs, versions."""

    def __init__(self, monitoring: Monitoring, projects: Overviews) -> None:
        self._monitoring = monitoring
        self._projects = projects
        self._overviews: list[ProjectOverview] = []
        self._look_again_s = 0.0
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Read the database now; when it cannot be read, that is all there is to tell."""
        try:
            work, overviews = self._monitoring.work(), self._look()
        except StoreUnavailable as error:
            log.warning("metrics without the database", reason=str(error))
            yield _gauge("tandem_database_up", "Whether the database can be read", False)
            return
        yield _gauge("tandem_database_up", "Whether the database can be read", True)
        yield from _projects(overviews)
        yield from _jobs(work.unfinished, work.now)
        yield _durations(work.tallies)

    def _look(self) -> list[ProjectOverview]:
        """Return all projects as they are now, or a moment ago where it takes long to count their labels."""
        with self._lock:
            started_s = time.monotonic()
            if started_s >= self._look_again_s:
                self._overviews = self._projects.all()
                ended_s = time.monotonic()
                self._look_again_s = ended_s + REST_FACTOR * (ended_s - started_s)
            return self._overviews


Reading = tuple[str, str, Callable[[ProjectOverview], float | None]]

READINGS: tuple[Reading, ...] = (
    ("tandem_tasks", "Tasks known", lambda each: each.n_tasks),
    ("tandem_labelled_tasks", "Tasks with a label", lambda each: each.n_labels),
    ("tandem_embedded_tasks", "Tasks with stored features", lambda each: each.n_embedded),
    ("tandem_unreadable_tasks", "Tasks whose image has a problem", lambda each: each.n_unreadable),
    (
        "tandem_trained_labels",
        "Labels the active version learned from; 0 without one",
        lambda each: each.active.n_labels if each.active else 0,
    ),
    (
        "tandem_active_version_number",
        "Number of the active version",
        lambda each: each.active.number if each.active else None,
    ),
    (
        "tandem_active_version_accuracy",
        "Accuracy of the active version",
        lambda each: each.active.metrics.accuracy if each.active else None,
    ),
    (
        "tandem_active_version_created_timestamp_seconds",
        "When the active version was learned",
        lambda each: each.active.created_at.timestamp() if each.active else None,
    ),
    (
        "tandem_last_event_timestamp_seconds",
        "When Label Studio sent the last event",
        lambda each: _timestamp(each.project.event_at),
    ),
    (
        "tandem_last_sync_timestamp_seconds",
        "When the last reconciliation with Label Studio ended",
        lambda each: _timestamp(each.project.synced_at),
    ),
    (
        "tandem_connection_problems",
        "Problems with the connection to Label Studio; tandem status names them",
        lambda each: len(each.project.problems),
    ),
)


def _projects(overviews: Sequence[ProjectOverview]) -> Iterator[Metric]:
    for name, meaning, read in READINGS:
        family = GaugeMetricFamily(name, meaning, labels=["project"])
        for overview in overviews:
            value = read(overview)
            if value is not None:
                family.add_metric([str(overview.project.id)], value)
        yield family


def _jobs(unfinished: Sequence[Job], now: datetime) -> Iterator[Metric]:
    labels = ["project", "kind", "status"]
    numbers = GaugeMetricFamily("tandem_jobs", "Jobs that wait or run", labels=labels)
    ages = GaugeMetricFamily(
        "tandem_job_age_seconds", "How long a job has run, or has waited since it was to start", labels=labels
    )
    for job in unfinished:
        names = [str(job.project_id), job.kind.value, job.status.value]
        since = job.started_at if job.status is JobStatus.RUNNING and job.started_at else job.run_after
        numbers.add_metric(names, 1)
        ages.add_metric(names, max(0.0, (now - since).total_seconds()))
    yield numbers
    yield ages


def _durations(tallies: Sequence[JobTally]) -> Metric:
    family = HistogramMetricFamily(
        "tandem_job_duration_seconds", "How long jobs ran, by how they ended", labels=["kind", "status"]
    )
    counts: dict[tuple[JobKind, JobStatus], Counter[float]] = defaultdict(Counter)
    totals_s: Counter[tuple[JobKind, JobStatus]] = Counter()
    for tally in tallies:
        counts[tally.kind, tally.status][tally.bound_s] += tally.n_jobs
        totals_s[tally.kind, tally.status] += tally.total_s  # type: ignore[assignment]  # counts need not be integers
    for (kind, status), of_bound in counts.items():
        n_jobs = 0
        buckets = []
        for bound_s in JOB_DURATION_BOUNDS_S:
            n_jobs += of_bound[bound_s]
            buckets.append(("+Inf" if math.isinf(bound_s) else str(bound_s), n_jobs))
        family.add_metric([kind.value, status.value], buckets, totals_s[kind, status])
    return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _timestamp(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
