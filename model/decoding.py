"""Decoding of images that nobody has vouched for: by processes that may die of it, each of one image at a time.

What decodes is written in C, and a file can be made to crash it, to keep it busy for hours or to have it take all
memory. Here that ends one of a few processes that do nothing else (``model.decoder``), under limits that the system
keeps. Which image it was is never in doubt; the others go on, and so does the process that they are for.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from model.decoder import READY, TimeLimits
from model.image_files import UnreadableImage
from model.pixel_budget import PixelBudget
from model.transforms import InputSpec

_log = structlog.get_logger()

N_TRIES = 3
N_REMEMBERED = 10_000
TIME_LIMITS = TimeLimits()
_VIEWS_BYTES = 16 * 2**20
_END_S = 10.0


class DecodersUnavailable(Exception):
    """A process that decodes could not be started, which says nothing of the image."""


class DecoderEnded(UnreadableImage):
    """A process ended while it had an image; ``by_the_image`` where nothing else can be the reason."""

    def __init__(self, reason: str, *, by_the_image: bool) -> None:
        super().__init__(reason)
        self.by_the_image = by_the_image


class Decoders:
    """Processes that decode, one for each processor at most, each started when it is needed; safe for threads.

    When one ends that has decoded other images before, they may be the reason, and when somebody kills one, as the
    system does that is out of memory, it may have had any image: so the image is tried again by a new one, up to
    ``N_TRIES`` times in all. What ended a new one by itself, or took too long, is refused, and from then on at once.
    """

    def __init__(self, n_processes: int | None = None, time_limits: TimeLimits | None = None) -> None:
        self._fatal = _FatalImages()
        self._all = [_Decoder(time_limits or TIME_LIMITS) for _ in range(n_processes or os.cpu_count() or 1)]
        self._budget = PixelBudget()
        self._idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def views(self, source: Path, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
        """Do what ``model.transforms.to_views`` does, in one of the processes.

        Raises:
            UnreadableImage: see ``to_views``; or the image is more than a process and its limits can bear.
            DecodersUnavailable: a process could not be started.
            ValueError: the network wants to see more than 16 MiB of an image.
        """
        self._fatal.refuse(source)
        decoder = self._idle.get()
        try:
            return self._decode(decoder, source, spec, max_pixels)
        finally:
            self._idle.put(decoder)

    def process_ids(self) -> list[int]:
        """Return the ids of the processes that run."""
        return [decoder.process_id for decoder in self._all if decoder.process_id is not None]

    def close(self) -> None:
        """End the processes, when nobody decodes any more."""
        for decoder in self._all:
            decoder.close()

    def _decode(self, decoder: _Decoder, source: Path, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
        n_tries = 0
        while True:
            try:
                return decoder.decode(source, spec, max_pixels, self._budget)
            except DecoderEnded as ending:
                n_tries += 1
                _log.warning("decoder ended", image=source.name, reason=str(ending), tries=n_tries)
                if ending.by_the_image:
                    self._fatal.add(source, str(ending))
                if ending.by_the_image or n_tries == N_TRIES:
                    raise


class _Decoder:
    """One process after the other."""

    def __init__(self, time_limits: TimeLimits) -> None:
        self._time_limits = time_limits
        self._shared = _open_shared(_VIEWS_BYTES)
        self._views = mmap.mmap(self._shared, _VIEWS_BYTES)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[bytes, bytes] | None = None
        self._is_new = True

    def decode(self, source: Path, spec: InputSpec, max_pixels: int, budget: PixelBudget) -> NDArray[np.uint8]:
        """Return the views of an image.

        Raises:
            DecoderEnded: the process ended; the next call starts another one.
            UnreadableImage: the process could not decode it.
            DecodersUnavailable: no process could be started.
            ValueError: the views are too large.
        """
        if 3 * spec.n_views * spec.crop_size**2 > _VIEWS_BYTES:
            raise ValueError(f"{spec.n_views} views of {spec.crop_size} pixels are more than {_VIEWS_BYTES} bytes")
        process, connection = self._running()
        try:
            _send(connection, path=os.fspath(source), spec=_as_text(spec), max_pixels=max_pixels)
            reply = _receive(connection)
            if "n_pixels" in reply:
                with budget.hold(reply["n_pixels"], at_most=max_pixels):
                    _send(connection)
                    reply = _receive(connection)
        except (EOFError, OSError):
            raise self._ending(process, was_new=self._is_new) from None
        except BaseException:
            self._stop()  # nobody will listen to what it still says
            raise
        self._is_new = False
        if "problem" in reply:
            raise UnreadableImage(reply["problem"])
        shape = reply["shape"]
        return np.frombuffer(self._views, np.uint8, np.prod(shape)).reshape(shape).copy()

    @property
    def process_id(self) -> int | None:
        """The id of the process, if one runs."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the process for good."""
        self._stop()
        self._views.close()
        os.close(self._shared)

    def _running(self) -> tuple[subprocess.Popen[bytes], Connection[bytes, bytes]]:
        if self._process is None or self._connection is None:
            self._process, self._connection = self._start()
            self._is_new = True
        return self._process, self._connection

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection[bytes, bytes]]:
        arguments = [self._shared, self._time_limits.processor_s, self._time_limits.clock_s]
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "model.decoder", *map(str, arguments)],
                stdin=theirs.fileno(),
                pass_fds=(self._shared,),
            )
        try:
            if ours.recv_bytes() == READY:
                return process, ours
        except (EOFError, OSError):
            pass
        ours.close()
        process.kill()
        raise DecodersUnavailable(f"a process that decodes images ended with status {process.wait()} when it started")

    def _ending(self, process: subprocess.Popen[bytes], *, was_new: bool) -> DecoderEnded:
        status = process.wait(_END_S)
        self._stop()
        limits = self._time_limits
        if status == -signal.SIGPROF:
            reason = f"its decoding takes more than {limits.processor_s:g} s of a processor"
            return DecoderEnded(reason, by_the_image=True)
        if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return DecoderEnded("its decoding was killed: out of memory, or by somebody", by_the_image=False)
        if status == -signal.SIGALRM:
            return DecoderEnded(f"its decoding takes more than {limits.clock_s:g} s", by_the_image=was_new)
        what = f"crashes ({signal.Signals(-status).name})" if status < 0 else f"ends with status {status}"
        return DecoderEnded(f"its decoding {what}", by_the_image=was_new)

    def _stop(self) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return
        connection.close()
        process.kill()
        process.wait()


class _FatalImages:
    """The contents that ended processes, with the reason, and without any memory of where they were."""

    def __init__(self) -> None:
        self._reasons: dict[int, dict[str, str]] = {}
        self._n_known = 0
        self._lock = threading.Lock()

    def refuse(self, source: Path) -> None:
        """Do nothing of an image that is not known; it is read only where one of its size is.

        Raises:
            UnreadableImage: it is known.
        """
        if not self._reasons:
            return
        try:
            alike = self._reasons.get(source.stat().st_size)
            reason = alike and alike.get(_sha256(source))
        except OSError:
            return  # whoever decodes it will say so
        if reason:
            raise UnreadableImage(reason)

    def add(self, source: Path, reason: str) -> None:
        """Remember an image; where there are too many, forget the others."""
        with self._lock:
            if self._n_known >= N_REMEMBERED:
                self._reasons = {}
                self._n_known = 0
            self._n_known += 1
            self._reasons.setdefault(source.stat().st_size, {})[_sha256(source)] = reason


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_shared(n_bytes: int) -> int:
    """Return the descriptor of a nameless file: in memory, or on disk where the system knows nothing of the kind."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("views")
    else:
        descriptor, name = tempfile.mkstemp()
        Path(name).unlink()
    os.ftruncate(descriptor, n_bytes)
    return descriptor


@lru_cache
def _as_text(spec: InputSpec) -> str:
    return json.dumps(asdict(spec))


def _send(connection: Connection[bytes, bytes], **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _receive(connection: Connection[bytes, bytes]) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(connection.recv_bytes())
    return message
