"""Memory of the NVIDIA GPUs of this machine, from the driver's own library: no torch, no process to start."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml

from backend.ports import GpuMemory


def gpu_memory() -> list[GpuMemory]:
    """Return the memory of each GPU that this process may see: none without a driver, and none that does not tell."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_each_memory())
    finally:
        pynvml.nvmlShutdown()


def _each_memory() -> Iterator[GpuMemory]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            continue
        yield GpuMemory(index=index, used_bytes=int(memory.used), total_bytes=int(memory.total))
