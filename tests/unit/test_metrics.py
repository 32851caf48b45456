"""What scraping costs, and what a worker on its own tells."""

from __future__ import annotations

import socket

import pytest
from prometheus_client import generate_latest

from backend.bootstrap import Container
from backend.commands.servers import serve_metrics
from backend.domain import JobKind
from backend.errors import ConfigurationError
from backend.routes.metrics import DatabaseMetrics
from backend.services.projects import ProjectOverview, Projects
from backend.settings import Settings
from tests.world import PROJECT, World, pets


class Stopwatch:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class SlowProjects:
    """Takes two seconds to count labels."""

    def __init__(self, projects: Projects, stopwatch: Stopwatch) -> None:
        self.projects = projects
        self.stopwatch = stopwatch
        self.n_asked = 0

    def all(self) -> list[ProjectOverview]:
        self.n_asked += 1
        self.stopwatch.now_s += 2
        return self.projects.all()


def samples(metrics: DatabaseMetrics, name: str) -> list[tuple[dict[str, str], float]]:
    return [(each.labels, each.value) for family in metrics.collect() for each in family.samples if each.name == name]


def test_labels_that_take_long_to_count_are_not_counted_all_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.see_tasks(pets(3))
    container = Container(Settings(model_dir=world.folder))  # type: ignore[call-arg]
    stopwatch = Stopwatch()
    monkeypatch.setattr("backend.routes.metrics.time", stopwatch)
    slow = SlowProjects(world.projects, stopwatch)
    metrics = DatabaseMetrics(container.monitoring, slow)
    assert samples(metrics, "tandem_tasks") == [({"project": "5"}, 3)]
    with world.database.transaction() as stores:
        world.scheduler.now(stores, PROJECT, JobKind.PUSH)
    world.see_tasks(pets(4))
    stopwatch.now_s += 39.9
    queued = {"project": "5", "kind": "push", "status": "queued"}
    assert (queued, 1) in samples(metrics, "tandem_jobs")
    assert samples(metrics, "tandem_tasks") == [({"project": "5"}, 3)]
    assert slow.n_asked == 1
    stopwatch.now_s += 0.2
    assert samples(metrics, "tandem_tasks") == [({"project": "5"}, 4)]
    container.database.close()


def test_a_worker_on_its_own_tells_nothing_that_the_web_process_tells(world: World) -> None:
    container = Container(Settings(model_dir=world.folder))  # type: ignore[call-arg]
    told = generate_latest(container.worker_metrics).decode()
    assert "tandem_embedder_up 0.0" in told
    assert "tandem_disk_free_bytes" in told
    assert "tandem_gpu_memory_used_bytes" in told
    assert "tandem_build_info" in told
    for name in ("tandem_tasks", "tandem_jobs", "tandem_job_duration_seconds", "tandem_database_up"):
        assert name not in told
    container.database.close()


def test_a_port_that_is_taken_is_said_to_be(world: World) -> None:
    container = Container(Settings(model_dir=world.folder))  # type: ignore[call-arg]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"METRICS_PORT=\d+ of 127\.0\.0\.1"):
            serve_metrics("127.0.0.1", taken.getsockname()[1], container.worker_metrics)
    container.database.close()
