"""Processes that belong together: where they meet, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from threadpoolctl import threadpool_limits

from backend.errors import ConfigurationError

COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""What tells prometheus_client, in each process of a supervisor, where all of them count."""

PARENT_VARIABLE = "TANDEM_PARENT"
"""What tells a process who started it: whose child it is may already be another one's when it asks."""

_M_ARENA_MAX = -8  # malloc.h


def runtime_folder(model_dir: Path) -> Path:
    """Return the private folder for sockets and locks of the processes on this machine that share a ``MODEL_DIR``.

    It lies in the temporary folder, because the path of a Unix socket may have some 100 characters at most.

    Raises:
        ConfigurationError: somebody else owns a folder of that name.
    """
    name = hashlib.sha256(os.fsencode(model_dir.absolute())).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"tandem-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise ConfigurationError(f"{folder} is not ours alone: remove it, or set TMPDIR to a folder that is")
    return folder


def embedder_address(model_dir: Path) -> Path:
    """Return the Unix socket of the embedding process."""
    return runtime_folder(model_dir) / "embedder.sock"


def embedder_lock(model_dir: Path) -> Path:
    """Return the file that the embedding process locks before it loads anything, for as long as it lives."""
    return runtime_folder(model_dir) / "embedder.lock"


@contextmanager
def counts_folder(model_dir: Path) -> Iterator[Path]:
    """Lend a new folder for what the processes of one supervisor count; see ``backend.measurements``.

    Folders of supervisors that ended otherwise than in good order are removed, once none of their processes counts
    any more: the lock goes on to those that are started with ``close_fds=False``.
    """
    parent = runtime_folder(model_dir) / "counts"
    parent.mkdir(exist_ok=True)
    with (parent / "lock").open("a") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        for other in parent.glob("*/"):
            _remove_unless_locked(other)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock, True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_unless_locked(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return  # its supervisor has just ended
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its supervisor lives
    finally:
        os.close(lock)


def is_running(process_id: int) -> bool:
    """Tell whether this machine has a process with an id."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def for_child(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, for a process that shall end with this one."""
    return {**environment, PARENT_VARIABLE: str(os.getpid())}


def exit_with_parent() -> None:
    """End this process soon after its parent has ended, however that happened, and be it before this call.

    That takes an environment from ``for_child``: processes start for seconds, and are adopted at once.
    """
    # what this process starts is no child of that parent
    parent = int(os.environ.pop(PARENT_VARIABLE, os.getppid()))  # noqa: TID251 - no setting

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def one_linear_algebra_thread() -> None:
    """Give numpy's linear algebra one thread in this process.

    Our matrices are small, and on cores shared with others threads that wait for each other make a head fit many
    times slower.
    """
    threadpool_limits(1, user_api="blas")


def give_back_memory() -> None:
    """Let all threads share what one has freed: by default glibc keeps it for each apart, and some for good.

    Threads that decode large images one after the other would hold the memory of several, and a web server's that of
    its busiest moment. Other C libraries have nothing of the kind to set.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
