"""What is kept in memory is bounded, whoever asks for how much; tests of images and jobs are with their stores."""

from __future__ import annotations

import errno
import shutil
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import pytest

from backend import embedding_server
from backend.domain import JobKind, JobStatus
from backend.embedding_server import N_FINETUNED_ENGINES, EmbeddingServer
from backend.measurements import Counting
from backend.promotion import version_key
from backend.services.prediction import N_LOADED_VERSIONS
from tests.factories import make_annotation
from tests.world import PROJECT, World, pets


def test_loaded_versions(world: World, tmp_path: Path) -> None:
    active = world.learn(pets(12))
    versions = [replace(active, name=f"p5-v{number}-0123abcd") for number in range(2, 3 * N_LOADED_VERSIONS)]
    for version in versions:
        copy = tmp_path / version.name
        shutil.copytree(world.artifacts.fetch(version_key(PROJECT, active.name)), copy)
        world.artifacts.publish(version_key(PROJECT, version.name), copy)
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(world.prediction.predictor, versions))
    assert len(loaded) == len(versions)
    assert len(world.prediction._predictors) == N_LOADED_VERSIONS
    world.prediction.predictor(active)
    assert active.name in world.prediction._predictors


def test_loaded_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    n_loaded = 0

    def load(_folder: Path) -> object:
        nonlocal n_loaded
        n_loaded += 1
        return object()

    monkeypatch.setattr(embedding_server, "load_saved_backbone", load)
    monkeypatch.setattr(embedding_server, "Engine", lambda backbone, _device: backbone)
    server = EmbeddingServer.__new__(EmbeddingServer)
    server.base_digest, server._device, server._finetuned, server._loading = "base", "cpu", OrderedDict(), Lock()
    server._artifacts = SimpleNamespace(fetch=Path)  # type: ignore[assignment]
    with ThreadPoolExecutor(8) as threads:
        first = set(threads.map(server._engine, ["a"] * 40))
    assert (len(first), n_loaded) == (1, 1)
    for digest in "bcdefgh":
        server._engine(digest)
        assert server._engine("a") in first, "what is used stays"
        assert len(server._finetuned) <= N_FINETUNED_ENGINES


def test_queued_jobs(world: World) -> None:
    world.see_tasks(pets(20))
    with world.database.transaction() as stores:
        stores.annotations.upsert(PROJECT, [make_annotation(1000, 1, "cat")])
    for _ in range(50):
        world.label(pets(20))
        with world.database.transaction() as stores:
            for kind in JobKind:
                world.scheduler.soon(stores, PROJECT, kind)
    queued = [job for job in world.projects.jobs(PROJECT) if job.status is JobStatus.QUEUED]
    assert sorted(job.kind for job in queued) == sorted(JobKind)


def test_counting_fails_nothing_where_its_disk_is_full() -> None:
    with Counting():
        raise OSError(errno.ENOSPC, "no space left on device")
    with pytest.raises(ZeroDivisionError), Counting():
        raise ZeroDivisionError
