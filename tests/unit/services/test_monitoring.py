"""Readiness, and what a machine tells."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from backend.adapters.gpus import gpu_memory
from backend.adapters.machines import LocalMachine
from backend.errors import ConfigurationError, StoreUnavailable
from backend.ports import EmbedderState, GpuMemory
from backend.processes import counts_folder
from backend.services.monitoring import Monitoring
from tests.world import World


@pytest.fixture
def monitoring(world: World) -> Monitoring:
    return Monitoring(world.database, LocalMachine(world.folder), world.clock)


def test_a_database_out_of_reach_is_told_without_its_address(
    monitoring: Monitoring, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable() -> None:
        raise StoreUnavailable("the database postgresql://tandem@database.internal/tandem cannot be used now")

    monkeypatch.setattr(world.database, "check_schema", unreachable)
    assert monitoring.readiness().reasons["database"] == "it cannot be used now"


def test_a_full_disk_is_no_disk(monitoring: Monitoring, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert "disk" not in monitoring.readiness().reasons
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert monitoring.readiness().reasons["disk"] == "MODEL_DIR cannot be written to"


def test_nothing_is_left_where_writing_was_tried(tmp_path: Path) -> None:
    machine = LocalMachine(tmp_path)
    machine.check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="MODEL_DIR"):
        LocalMachine(tmp_path / "file").check_writable()


def test_without_an_embedding_process_it_is_down(tmp_path: Path) -> None:
    assert LocalMachine(tmp_path).embedder() is EmbedderState.DOWN


def test_without_a_driver_there_is_no_gpu() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpu_memory() == []
    else:
        pytest.skip("this machine has a driver")


def test_a_gpu_that_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(index: int) -> int:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(used=index + 5, total=80))
    assert gpu_memory() == [
        GpuMemory(index=0, used_bytes=5, total_bytes=80),
        GpuMemory(index=2, used_bytes=7, total_bytes=80),
    ]


def test_counts_of_a_supervisor_go_with_it_or_with_the_next_one(tmp_path: Path) -> None:
    with counts_folder(tmp_path) as living:
        abandoned = living.parent / "abandoned"
        abandoned.mkdir()
        with counts_folder(tmp_path) as other:
            assert living.is_dir()
            assert other != living
            assert not abandoned.exists()
        assert not other.exists()
    assert not living.exists()
