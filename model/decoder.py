"""A process that decodes images for another one, one at a time and under limits; ``model.decoding`` is the other side.

Requests come over standard input, a socket; pixels go back through memory that both share. When the other process ends,
this one does.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from model.image_files import OUT_OF_MEMORY, UnreadableImage
from model.transforms import InputSpec, to_views

READY = b"ready"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
BYTES_PER_PIXEL = 32
"""Address space for an image with the most pixels allowed: a lossless WebP takes 24 bytes for each."""
OTHER_BYTES = 128 * 2**20
KEPT_BYTES = 16 * 2**20
"""What this process does not give back to the system between images: to be given it again takes time."""
SMALL_SHARE = 1 / 64
"""Of the most pixels allowed: an image of no more is decoded without asking for room, which takes a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long one image may take: seconds of the processor, and on the clock, for what only waits."""

    processor_s: float = 30.0
    clock_s: float = 60.0


class OtherProcess:
    """The ``PixelLimit`` of all decoders together: the process that they work for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def hold(self, n_pixels: int, *, at_most: int) -> Iterator[None]:
        """Wait until there is room; it is given up with the answer."""
        if n_pixels > SMALL_SHARE * at_most:
            left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
            self._connection.send_bytes(json.dumps({"n_pixels": n_pixels}).encode())
            self._connection.recv_bytes()
            signal.setitimer(signal.ITIMER_REAL, left_s)
        yield


def main() -> None:
    """Decode until the other process ends."""
    descriptor, processor_s, clock_s = sys.argv[1:]
    limits = TimeLimits(processor_s=float(processor_s), clock_s=float(clock_s))
    memory = mmap.mmap(int(descriptor), 0)
    connection = Connection(os.dup(sys.stdin.fileno()))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    be_expendable()
    keep_memory()
    address_space = address_space_bytes()
    with suppress(EOFError, ConnectionError):
        connection.send_bytes(READY)
        while True:
            request = json.loads(connection.recv_bytes())
            limit_memory(address_space, request["max_pixels"])
            with limited_time(limits):
                reply = decode(request, memory, OtherProcess(connection))
            connection.send_bytes(json.dumps(reply).encode())


def decode(request: Mapping[str, Any], memory: mmap.mmap, limit: OtherProcess) -> dict[str, Any]:
    """Put pixels where both processes see them, and return their shape, or what is wrong with the image."""
    try:
        views = to_views(
            Path(request["path"]), input_spec(request["spec"]), max_pixels=request["max_pixels"], limit=limit
        )
    except UnreadableImage as problem:
        return {"problem": str(problem)}
    except MemoryError:
        return {"problem": OUT_OF_MEMORY}
    except Exception as error:  # noqa: BLE001 - whatever comes of an image says only that it cannot be decoded
        return {"problem": f"it cannot be decoded: {error!r}"}
    np.frombuffer(memory, np.uint8, views.size).reshape(views.shape)[...] = views
    return {"shape": views.shape}


@lru_cache
def input_spec(text: str) -> InputSpec:
    """Read what the network wants to see."""
    fields = json.loads(text)
    return InputSpec(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


@contextmanager
def limited_time(limits: TimeLimits) -> Iterator[None]:
    """Let the system end this process, whatever it is busy with, when something takes too long."""
    signal.setitimer(signal.ITIMER_PROF, limits.processor_s)
    signal.setitimer(signal.ITIMER_REAL, limits.clock_s)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)


def be_expendable() -> None:
    """Be the first that a system without memory ends, and leave no image of this process on its disk."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_memory() -> None:
    """Have the C library keep some memory for the next image, where it can be told to."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, KEPT_BYTES)
        set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)


def address_space_bytes() -> int:
    """Return how much address space this process has, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def limit_memory(before_bytes: int, max_pixels: int) -> None:
    """Refuse this process more memory than the largest image allowed can need."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = before_bytes + OTHER_BYTES + BYTES_PER_PIXEL * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main()
