"""A Tandem of real processes that may be killed at any moment, and what can be done to them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import requests

from backend.background_process import free_port

INJECTED = Path(__file__).parent / "injected"
VICTIMS = {
    "web": b"gunicorn",
    "web master": b"gunicorn",
    "worker": b"worker\0--no-embedder",
    "child": b"backend.job_process",
    "embedder": b"backend.embedder",
    "decoder": b"model.decoder",
}
SUPERVISORS = {"web supervisor": ("serve", "--no-worker"), "worker supervisor": ("worker",)}


class Processes:
    """``tandem serve --no-worker`` and ``tandem worker``, with everything that they start."""

    def __init__(self, folder: Path, model_dir: Path, label_studio_url: str, **settings: str) -> None:
        self.folder = folder
        self.model_dir = model_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._control = folder / "chaos.json"
        self._supervisors: dict[str, subprocess.Popen[bytes]] = {}
        self._log = (folder / "tandem.log").open("ab")
        self.let(clock_offset_s=0.0, crash_share=0.0)
        python_path = os.pathsep.join([str(INJECTED), str(Path(__file__).parents[2])])
        self._environment = os.environ | {  # noqa: TID251 - handed on to children
            "PYTHONPATH": python_path,
            "TANDEM_CHAOS": str(self._control),
            "LABEL_STUDIO_URL": label_studio_url,
            "LABEL_STUDIO_API_KEY": "0123456789abcdef0123456789abcdef01234567",
            "PUBLIC_URL": self.url,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "MODEL_DIR": str(model_dir),
            "BACKBONE": "shufflenet_v2_x0_5",
            "WEIGHTS": "none",
            "IMAGE_VIEWS": "1",
            "IMAGE_CACHE_BYTES": str(8 * 2**20),
            "TRAIN_QUIET_S": "0.3",
            "TRAIN_MAX_WAIT_S": "2",
            "FINETUNE_MIN_LABELS": "1000000",
            "SYNC_INTERVAL_S": "4",
            "QUERY_STRATEGY": "margin",
            **settings,
        }

    @property
    def log_file(self) -> Path:
        """What all processes said."""
        return self.folder / "tandem.log"

    def start(self) -> None:
        """Start the supervisors that do not run."""
        for name, arguments in SUPERVISORS.items():
            known = self._supervisors.get(name)
            if known is None or known.poll() is not None:
                process = subprocess.Popen(
                    [sys.executable, "-m", "backend", *arguments], env=self._environment, stderr=subprocess.PIPE
                )
                # a pipe, because limits on the size of files are not to be met by the log
                threading.Thread(target=self._note, args=(process.stderr,), daemon=True).start()
                self._supervisors[name] = process

    def _note(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._log.write(line)
                self._log.flush()

    def stop(self) -> list[int]:
        """End all in good order; return the exit status of each supervisor."""
        for process in self._supervisors.values():
            process.send_signal(signal.SIGTERM)
        return [process.wait(60) for process in self._supervisors.values()]

    def destroy(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        for process in self._supervisors.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        deadline_s = time.monotonic() + 30
        while self.alive() and time.monotonic() < deadline_s:
            for pid, _ in self.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        self._log.close()

    def is_up(self) -> bool:
        """Whether the web server answers."""
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=1).ok
        return False

    def let(self, **what: float) -> None:
        """Tell all processes how much their clock is off, and how often they die where they make something durable."""
        known = json.loads(self._control.read_bytes()) if self._control.exists() else {}
        temporary = self._control.with_suffix(".tmp")
        temporary.write_text(json.dumps(known | what))
        temporary.replace(self._control)

    def crashes(self) -> list[str]:
        """Return what died of ``crash_share`` since the last call, as the names of victims."""
        found = []
        for path in self.folder.glob("crash-*"):
            command = path.read_bytes().replace(b" ", b"\0")
            found.append(next((name for name, part in VICTIMS.items() if part in command), "supervisor"))
            path.unlink()
        return found

    def kill(self, victim: str, choose: float) -> bool:
        """Kill one of the processes of a kind, ``choose`` in [0, 1) says which; return whether there was one."""
        found = self.find(victim)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(found[int(choose * len(found))], signal.SIGKILL)
            if victim in SUPERVISORS:
                # or start would find it alive still
                self._supervisors[victim].wait(10)
            return True
        return False

    def find(self, victim: str) -> list[int]:
        """Return the processes of a kind."""
        if victim in SUPERVISORS:
            process = self._supervisors[victim]
            return [process.pid] if process.poll() is None else []
        found = sorted(pid for pid, command in self.alive() if VICTIMS[victim] in command)
        if victim.startswith("web"):
            # the master is there first, and the others are its children
            return found[:1] if victim == "web master" else found[1:]
        return found

    def limit_files(self, n_bytes: int) -> None:
        """Cut short every write beyond so many bytes of a file, of all processes and of those they start."""
        for pid, _ in self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (n_bytes, hard))

    def alive(self) -> Iterator[tuple[int, bytes]] | list[tuple[int, bytes]]:
        """Return id and command line of every process that belongs to this Tandem."""
        mark = f"TANDEM_CHAOS={self._control}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((int(folder.name), (folder / "cmdline").read_bytes()))
        return found
