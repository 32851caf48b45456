"""This machine as operators watch it: its disk, its GPUs, and whether its embedding process is up."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

from backend.adapters.gpus import gpu_memory
from backend.errors import ConfigurationError, StoreUnavailable
from backend.ports import DiskSpace, EmbedderState, GpuMemory
from backend.processes import embedder_address, embedder_lock

CONNECT_TIMEOUT_S = 1.0


class LocalMachine:
    """A ``Machine`` whose state is in one folder, ``MODEL_DIR``."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir

    def check_writable(self) -> None:
        """Make sure that the folder of all local state can be written to.

        Raises:
            ConfigurationError: it cannot.
        """
        make_writable(self._model_dir)

    def disk(self) -> DiskSpace:
        """Return the room on the disk of the folder."""
        usage = shutil.disk_usage(self._model_dir)
        return DiskSpace(free_bytes=usage.free, total_bytes=usage.total)

    def gpus(self) -> list[GpuMemory]:
        """Return the memory of each GPU."""
        return gpu_memory()

    def embedder(self) -> EmbedderState:
        """Return whether the embedding process answers, or at least lives.

        It holds its lock before it loads anything, and makes its socket when all is loaded.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_TIMEOUT_S)
            try:
                connection.connect(str(embedder_address(self._model_dir)))
            except OSError:
                is_starting = _is_held(embedder_lock(self._model_dir))
                return EmbedderState.STARTING if is_starting else EmbedderState.DOWN
        return EmbedderState.UP


def make_writable(folder: Path) -> None:
    """Make the folder of all local state, or say who must.

    Raises:
        ConfigurationError: it cannot be made or written to.
        StoreUnavailable: its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # without a name: nothing is left of it, however this ends
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"a disk that is full takes an empty file, but no byte")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreUnavailable(f"MODEL_DIR={str(folder)!r} is full: make room there") from error
        raise ConfigurationError(
            f"MODEL_DIR={str(folder)!r} cannot be written to by user {os.getuid()} ({error.strerror}): "
            "make room there, change its owner or set MODEL_DIR"
        ) from error


def in_container() -> bool:
    """Tell whether this process runs in a container: Docker's, Podman's or a pod's."""
    return any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io"))


def _is_held(lock: Path) -> bool:
    """Tell whether a process holds a lock exclusively; to ask keeps nobody from taking it for longer than that."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
