"""Processes that belong together: where they meet, and that none outlives its parent."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from backend.errors import ConfigurationError


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


def exit_with_parent() -> None:
    """End this process soon after its parent has ended, however that happened."""
    parent = os.getppid()

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
