"""The state of all projects in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from backend.services.projects import ProjectOverview


def render_metrics(overviews: Sequence[ProjectOverview]) -> bytes:
    """Return gauges for every project, read from the database at this moment."""
    registry = CollectorRegistry()
    labels = ["project"]
    tasks = Gauge("tandem_tasks", "Tasks known", labels, registry=registry)
    labelled = Gauge("tandem_labelled_tasks", "Tasks with a label", labels, registry=registry)
    embedded = Gauge("tandem_embedded_tasks", "Tasks with stored features", labels, registry=registry)
    unreadable = Gauge("tandem_unreadable_tasks", "Tasks whose image has a problem", labels, registry=registry)
    trained = Gauge("tandem_trained_labels", "Labels the active version learned from", labels, registry=registry)
    version = Gauge("tandem_active_version_number", "Number of the active version", labels, registry=registry)
    accuracy = Gauge("tandem_active_version_accuracy", "Accuracy of the active version", labels, registry=registry)
    jobs = Gauge("tandem_jobs", "Jobs that wait or run", [*labels, "kind", "status"], registry=registry)
    for overview in overviews:
        project = str(overview.project.id)
        tasks.labels(project).set(overview.n_tasks)
        labelled.labels(project).set(overview.n_labels)
        embedded.labels(project).set(overview.n_embedded)
        unreadable.labels(project).set(overview.n_unreadable)
        if overview.active:
            trained.labels(project).set(overview.active.n_labels)
            version.labels(project).set(overview.active.number)
            accuracy.labels(project).set(overview.active.metrics.accuracy)
        for status, kinds in (("queued", overview.queued), ("running", overview.running)):
            for kind in kinds:
                jobs.labels(project, kind.value, status).set(1)
    return generate_latest(registry)
