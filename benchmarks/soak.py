"""Whether memory stays flat: a hundred thousand requests in a quarter of an hour, with trainings all the while.

    python benchmarks/soak.py [--requests 100000] [--minutes 15] [--output benchmarks/results/soak.json]

A whole Tandem knows some hundred photos. Half of the requests ask for a suggestion, half are events that change one of
five thousand annotations, which has heads learned again and again. The memory that each process shares with none is
read every few seconds; what counts is by how much the median of the last third is above that of the second third:
in the first one, everything that is loaded or cached once is being loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.described import described
from benchmarks.load import show
from benchmarks.load_clients import Answers, Request, annotation_event, send, suggestion_request
from benchmarks.serving_world import Photos, descendants, memory_mb, serving_tandem

N_PHOTOS = 400
N_ANNOTATIONS = 5000
N_CLIENTS = 16
SAMPLE_EVERY_S = 5.0
ROLES = {
    "backend.embedder": "embedder",
    "model.decoder": "decoder",
    "backend.job_process": "child",
    "--no-embedder": "worker",
    "gunicorn": "web",
    "serve": "supervisor",
}
MAX_GROWTH_SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--backbone", default="mobilenet_v3_small")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as senders,
        serving_tandem(arguments.backbone, N_PHOTOS) as (tandem, supervisor),
    ):
        tandem.learn(N_PHOTOS)
        started_s = time.perf_counter()
        per_s = arguments.requests / (60 * arguments.minutes)
        sent = senders.submit(soak, tandem.port, tandem.photos, arguments.requests, per_s)
        samples = watch(supervisor, sent)
        answers = sent.result()
        elapsed_s = time.perf_counter() - started_s
    memory = {role: summary(values) for role, values in sorted(samples.items())}
    results = {
        "requests": arguments.requests,
        "minutes": round(elapsed_s / 60, 1),
        "statuses": {path: dict(counts) for path, counts in answers.statuses.items()},
        "webhook": answers.percentiles_ms("/webhook"),
        "predict": answers.percentiles_ms("/predict"),
        "memory_mb": memory,
    }
    show({**{name: value for name, value in results.items() if name != "memory_mb"}, **memory})
    if arguments.output:
        arguments.output.write_text(json.dumps(described() | results, indent=2) + "\n")
    grown = {role: each["growth"] for role, each in memory.items() if each["growth"] > MAX_GROWTH_SHARE}
    if grown:
        raise SystemExit(f"memory is not flat: {grown}")


def soak(port: int, photos: Photos, n_requests: int, per_s: float) -> Answers:
    return send(port, mixed(photos, n_requests), N_CLIENTS, per_s)


def mixed(photos: Photos, n_requests: int) -> Iterator[Request]:
    """Yield requests for suggestions and events by turns."""
    for number in range(n_requests):
        if number % 2:
            yield suggestion_request(photos, number // 2, N_PHOTOS)
        else:
            version, annotation = divmod(number // 2, N_ANNOTATIONS)
            yield annotation_event(photos, annotation, N_PHOTOS, version)


def watch(supervisor: int, sent: Future[Answers]) -> dict[str, list[float]]:
    """Return the memory of every role, sample by sample, until everything was sent; of two web processes the sum."""
    samples: dict[str, list[float]] = defaultdict(list)
    while not sent.done():
        of_role: dict[str, float] = defaultdict(float)
        for pid in [supervisor, *descendants(supervisor)]:
            with contextlib.suppress(OSError):
                of_role[role(pid)] += memory_mb(pid)[1]
        for name, value in of_role.items():
            samples[name].append(value)
        time.sleep(SAMPLE_EVERY_S)
    return samples


def role(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return next((name for part, name in ROLES.items() if part in command), "other")


def summary(values: list[float]) -> dict[str, Any]:
    """Return the memory in megabytes at the start, in each third and at most, and the growth as a share."""
    third = max(1, len(values) // 3)
    medians = [statistics.median(values[start : start + third] or values[-1:]) for start in (0, third, 2 * third)]
    return {
        "start": round(values[0], 1),
        "thirds": [round(median, 1) for median in medians],
        "most": round(max(values), 1),
        "growth": round(medians[2] / medians[1] - 1, 4),
    }


if __name__ == "__main__":
    main()
