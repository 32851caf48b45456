"""How fast requests for suggestions are answered, beside a training too, and what a second web process costs.

    python benchmarks/serving.py [--backbone resnet18] [--rounds 7] [--output benchmarks/results/serving.json]

A whole Tandem (web, worker, embedder) runs on generated photos of 640 x 480, read as Label Studio's local files; the
weights are random, which is as fast. One task per request, asked by http.client from another process; of 2,000 known
images one after the other in no order, each again only after all others. What is
compared is measured in turns, once per round, and the ratios are medians over the rounds:

- known images, against a Flask route that does nothing, under the same gunicorn settings, by throughput and by the web
  process's own time for a request, which others on the machine disturb less;
- images never seen before, against decoding and network alone, with all images given at once, in a process that does
  nothing else: Tandem's engine with its runtime and with torch, and eager torch in float32;
- known images while a network is fine-tuned, against the same while that process is stopped;
- proportional memory of the web server with two workers, against one, after requests to all photos.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backend.background_process import free_port
from benchmarks.described import described
from benchmarks.serving_load import Burst, ask, loop_rates, prepare_loops
from benchmarks.serving_world import (
    Tandem,
    descendants,
    memory_mb,
    processor_s,
    serving_tandem,
    training_process,
    web_master,
    web_server,
)

N_KNOWN = 2000
N_LABELLED = 200
N_UNKNOWN_PER_ROUND = 48
UNKNOWN_CLIENTS = 4
BURST_S = 1.0
SUGGESTED = b'"model_version"'
NO_OP = b'["no-op"]'
N_MEMORY_TRIES = 5
LIBRARIES = ("flask", "gunicorn", "numpy", "openvino", "sqlalchemy", "torch", "torchvision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Requests a second, and latencies and the web process's own time for a request in milliseconds.

    ``ratio`` is of Tandem's throughput to the no-op's, ``best_ratio`` that of the best burst of each: others who use
    the machine only ever slow a burst down. ``cpu_ratio`` is of the no-op's processor time to Tandem's.
    """

    clients: int
    no_op_per_s: float
    tandem_per_s: float
    tandem_p50_ms: float
    tandem_p95_ms: float
    no_op_cpu_ms: float
    tandem_cpu_ms: float
    ratio: float
    best_ratio: float
    cpu_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Images a second; ratios are of Tandem's to those of the bare loops."""

    clients: int
    engine_runtime: str
    torch_runtime: str
    tandem_per_s: float
    engine_per_s: float
    torch_per_s: float
    eager_float32_per_s: float
    ratio_to_engine: float
    ratio_to_torch: float
    ratio_to_eager_float32: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideTraining:
    """Latencies in milliseconds; ``training_share`` is what the training gets of one processor meanwhile."""

    clients: int
    idle_p50_ms: float
    idle_p95_ms: float
    training_p50_ms: float
    training_p95_ms: float
    training_share: float
    p95_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In megabytes: the web server's proportional share in all, with one worker and with two; what each alone has."""

    one_worker_mb: float
    two_workers_mb: float
    private_mb: tuple[float, ...]
    ratio_of_second: float


class Clients:
    """Who asks, in a process of its own."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self._process = process
        self._order = list(range(1, N_KNOWN + 1))
        random.Random(0).shuffle(self._order)

    def ask_known(self, tandem: Tandem, port: int, n_clients: int, expected: bytes = SUGGESTED) -> Burst:
        """Ask for as long as a burst takes for known images, going on where the last burst for them ended."""
        bodies = [tandem.photos.body(number) for number in self._order]
        burst = self.ask(port, bodies, n_clients, expected=expected, duration_s=BURST_S)
        n_asked = len(burst.latencies_s) % N_KNOWN
        self._order = self._order[n_asked:] + self._order[:n_asked]
        return burst

    def ask(
        self, port: int, bodies: list[bytes], n_clients: int, *, expected: bytes = b"", duration_s: float | None = None
    ) -> Burst:
        return self._process.submit(ask, port, bodies, n_clients, expected, duration_s).result()


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile_ms(bursts: Iterable[Burst], percent: float) -> float:
    """Return the median over the bursts of a percentile within each, in milliseconds."""
    return median(float(np.percentile(burst.latencies_s, percent)) * 1000 for burst in bursts)


def measure_known(tandem: Tandem, web: int, clients: Clients, n_clients: int, rounds: int) -> Known:
    """Measure known images; ``web`` is the master of Tandem's web server."""
    settings = tandem.settings(port=free_port())
    with web_server(settings, tandem.environment(), "serving_load:no_op()") as no_op:

        def burst(master: int, port: int, expected: bytes) -> tuple[Burst, float]:
            before_s = workers_s(master)
            answered = clients.ask_known(tandem, port, n_clients, expected)
            return answered, (workers_s(master) - before_s) / len(answered.latencies_s) * 1000

        rounds_taken = [
            (*burst(no_op, settings.port, NO_OP), *burst(web, tandem.port, SUGGESTED)) for _ in range(rounds + 1)
        ]
    no_ops, no_op_cpu_ms, suggestions, cpu_ms = zip(*rounds_taken[1:], strict=True)  # the first round warms up
    return Known(
        clients=n_clients,
        no_op_per_s=median(burst.per_s for burst in no_ops),
        tandem_per_s=median(burst.per_s for burst in suggestions),
        tandem_p50_ms=percentile_ms(suggestions, 50),
        tandem_p95_ms=percentile_ms(suggestions, 95),
        no_op_cpu_ms=median(no_op_cpu_ms),
        tandem_cpu_ms=median(cpu_ms),
        ratio=median(ours.per_s / no_op.per_s for no_op, ours in zip(no_ops, suggestions, strict=True)),
        best_ratio=max(burst.per_s for burst in suggestions) / max(burst.per_s for burst in no_ops),
        cpu_ratio=median(no_op / ours for no_op, ours in zip(no_op_cpu_ms, cpu_ms, strict=True)),
    )


def workers_s(master: int) -> float:
    """Return the processor time that a web server's workers have used."""
    return sum(map(processor_s, descendants(master)))


def measure_unknown(tandem: Tandem, clients: Clients, backbone: str, rounds: int) -> Unknown:
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as bare:
        known = [tandem.photos.path(number) for number in range(1, N_LABELLED + 1)]
        settings = tandem.settings()
        loading = bare.submit(prepare_loops, backbone, Path(settings.weights), settings.image_views, known)
        engine_runtime, torch_runtime = loading.result()
        rates = []
        for number in range(rounds):
            first = N_KNOWN + 1 + number * N_UNKNOWN_PER_ROUND
            new = range(first, first + N_UNKNOWN_PER_ROUND)
            bodies = [tandem.photos.body(each) for each in new]
            burst = clients.ask(tandem.port, bodies, UNKNOWN_CLIENTS, expected=SUGGESTED)
            time.sleep(BURST_S)
            rates.append((burst.per_s, *bare.submit(loop_rates, [tandem.photos.path(each) for each in new]).result()))
            time.sleep(BURST_S)
    ours, engine, torch, eager = zip(*rates, strict=True)
    return Unknown(
        clients=UNKNOWN_CLIENTS,
        engine_runtime=engine_runtime,
        torch_runtime=torch_runtime,
        tandem_per_s=median(ours),
        engine_per_s=median(engine),
        torch_per_s=median(torch),
        eager_float32_per_s=median(eager),
        ratio_to_engine=median(ours / engine for ours, engine, _, _ in rates),
        ratio_to_torch=median(ours / torch for ours, _, torch, _ in rates),
        ratio_to_eager_float32=median(ours / eager for ours, _, _, eager in rates),
    )


def measure_beside_training(
    tandem: Tandem, supervisor: int, clients: Clients, client_counts: list[int], rounds: int
) -> list[BesideTraining]:
    job_id = tandem.fine_tune()
    training = training_process(supervisor)
    results = []
    for n_clients in client_counts:
        idle, beside, shares = [], [], []
        for _ in range(rounds):
            os.kill(training, signal.SIGSTOP)
            idle.append(clients.ask_known(tandem, tandem.port, n_clients))
            os.kill(training, signal.SIGCONT)
            before_s = processor_s(training)
            burst = clients.ask_known(tandem, tandem.port, n_clients)
            shares.append((processor_s(training) - before_s) / burst.elapsed_s)
            beside.append(burst)
        results.append(
            BesideTraining(
                clients=n_clients,
                idle_p50_ms=percentile_ms(idle, 50),
                idle_p95_ms=percentile_ms(idle, 95),
                training_p50_ms=percentile_ms(beside, 50),
                training_p95_ms=percentile_ms(beside, 95),
                training_share=median(shares),
                p95_ratio=median(
                    percentile_ms([both], 95) / percentile_ms([alone], 95)
                    for alone, both in zip(idle, beside, strict=True)
                ),
            )
        )
    tandem.cancel(job_id)
    return results


def measure_memory(tandem: Tandem, clients: Clients) -> Memory:
    """Return the median try by what the second worker costs: which pages are copied is up to chance."""
    tries = sorted((try_memory(tandem, clients) for _ in range(N_MEMORY_TRIES)), key=lambda each: each.ratio_of_second)
    return tries[N_MEMORY_TRIES // 2]


def try_memory(tandem: Tandem, clients: Clients) -> Memory:
    bodies = [tandem.photos.body(number) for number in range(1, N_KNOWN + 1)]
    totals_mb, private_mb = [], []
    for n_workers in (1, 2):
        settings = tandem.settings(port=free_port(), workers=n_workers)
        with web_server(settings, tandem.environment()) as master:
            for _ in range(4):
                clients.ask(settings.port, bodies, 16, expected=SUGGESTED)
            workers = [memory_mb(pid) for pid in descendants(master)]
            totals_mb.append(memory_mb(master)[0] + sum(proportional for proportional, _ in workers))
            private_mb = [private for _, private in workers]
    return Memory(
        one_worker_mb=totals_mb[0],
        two_workers_mb=totals_mb[1],
        private_mb=tuple(private_mb),
        ratio_of_second=totals_mb[1] / totals_mb[0] - 1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
        serving_tandem(arguments.backbone, N_KNOWN + arguments.rounds * N_UNKNOWN_PER_ROUND) as (tandem, supervisor),
    ):
        clients = Clients(process)
        tandem.learn(N_KNOWN, N_LABELLED)
        web = web_master(supervisor)
        known = [measure_known(tandem, web, clients, each, arguments.rounds) for each in arguments.clients]
        memory = measure_memory(tandem, clients)
        unknown = measure_unknown(tandem, clients, arguments.backbone, arguments.rounds)
        beside = measure_beside_training(tandem, supervisor, clients, arguments.clients, arguments.rounds)
    results = {
        "known": [asdict(each) for each in known],
        "unknown": [asdict(unknown)],
        "beside_training": [asdict(each) for each in beside],
        "memory": [asdict(memory)],
    }
    for title, rows in results.items():
        show(title, rows)
    if arguments.output:
        report = {
            **described(*LIBRARIES),
            "rounds": arguments.rounds,
            **results,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def show(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
