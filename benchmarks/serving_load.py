"""What benchmarks/serving.py runs in other processes: who asks, a route that does nothing, and the bare network."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from flask import Flask

MAX_PIXELS = 10_000_000
WARM_UP_IMAGES = 8
SMALL_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """What a burst of requests took: all of it, and each request, in seconds."""

    elapsed_s: float
    latencies_s: tuple[float, ...]

    @property
    def per_s(self) -> float:
        """Requests answered in a second."""
        return len(self.latencies_s) / self.elapsed_s


def no_op() -> Flask:
    """Return an application that answers at once."""
    app = Flask("no-op")

    @app.post("/predict")
    def predict() -> dict[str, list[str]]:
        return {"results": ["no-op"]}

    return app


def ask(port: int, bodies: list[bytes], n_clients: int, expected: bytes, duration_s: float | None) -> Burst:
    """Send bodies from that many clients at once, each as soon as its last one is answered.

    For ``duration_s``, over and over; without it each body once.
    """
    started_s = time.perf_counter()
    deadline_s = None if duration_s is None else started_s + duration_s
    take = _shared(bodies if deadline_s is None else cycle(bodies))
    latencies_s: list[float] = []

    def work(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (body := take()) is not None and (deadline_s is None or time.perf_counter() < deadline_s):
            asked_s = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            latencies_s.append(time.perf_counter() - asked_s)
            if answer.status != 200 or expected not in content:
                raise RuntimeError(f"a request was not answered as it should be: {answer.status}: {content[:300]!r}")
        connection.close()

    with ThreadPoolExecutor(n_clients) as clients:
        list(clients.map(work, range(n_clients)))
    return Burst(elapsed_s=time.perf_counter() - started_s, latencies_s=tuple(latencies_s))


def _shared(bodies: Iterable[bytes]) -> Callable[[], bytes | None]:
    lock = threading.Lock()
    remaining: Iterator[bytes] = iter(bodies)

    def take() -> bytes | None:
        with lock:
            return next(remaining, None)

    return take


class BareLoops:
    """Decoding and the network in one process, with nothing around them."""

    def __init__(self, backbone: str, weights: Path, n_views: int, paths: list[Path]) -> None:
        import torch

        from model.backbones import load_backbone
        from model.features import Engine
        from model.precision import bfloat16_pays
        from model.runtimes import TorchRuntime
        from model.transforms import normalise, to_views

        self._loaded = load_backbone(backbone, weights, n_views=n_views)
        self._engine = Engine(self._loaded)
        self._torch_engine = Engine(self._loaded)
        self._torch_engine.runtime = TorchRuntime(self._loaded, bfloat16=bfloat16_pays("cpu"))
        self._torch, self._normalise, self._to_views = torch, normalise, to_views
        self.runtime_names = self._engine.runtime.name, self._torch_engine.runtime.name
        self.rates(paths[:WARM_UP_IMAGES])

    def rates(self, paths: list[Path]) -> tuple[float, float, float]:
        """Return images per second of Tandem's engine, of the same on torch, and of eager torch in float32."""
        engines = [self._ahead(engine, paths) for engine in (self._engine, self._torch_engine)]
        return engines[0], engines[1], max(self._eager(paths, batch_size) for batch_size in (1, SMALL_BATCH))

    def _ahead(self, engine: Any, paths: list[Path]) -> float:
        """Decode ahead of the network."""
        started_s = time.perf_counter()
        embedded = engine.embed(paths, max_pixels=MAX_PIXELS)
        if embedded.problems:
            raise RuntimeError(f"images cannot be read: {embedded.problems}")
        return len(paths) / (time.perf_counter() - started_s)

    def _eager(self, paths: list[Path], batch_size: int) -> float:
        """Decode and run one batch after the other, channels first."""
        spec, network = self._loaded.input_spec, self._loaded.network
        started_s = time.perf_counter()
        with self._torch.inference_mode():
            for start in range(0, len(paths), batch_size):
                some = paths[start : start + batch_size]
                views = [self._normalise(self._to_views(path, spec, max_pixels=MAX_PIXELS), spec) for path in some]
                network(self._torch.cat(views).contiguous())
        return len(paths) / (time.perf_counter() - started_s)


_loops: BareLoops | None = None


def prepare_loops(backbone: str, weights: Path, n_views: int, paths: list[Path]) -> tuple[str, str]:
    """Load the network into this process, and return what runs it: Tandem's choice, and torch."""
    global _loops
    _loops = BareLoops(backbone, weights, n_views, paths)
    return _loops.runtime_names


def loop_rates(paths: list[Path]) -> tuple[float, float, float]:
    """Return images per second of Tandem's engine, of the same on torch, and of eager torch in float32."""
    if _loops is None:
        raise RuntimeError("the network is not loaded: call prepare_loops first")
    return _loops.rates(paths)
