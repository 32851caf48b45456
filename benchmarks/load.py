"""Whether Label Studio's events are answered in time, and none is lost, while a network is trained.

    python benchmarks/load.py [--events 10000] [--clients 16] [--output benchmarks/results/load.json]

A whole Tandem (web, worker, embedder; SQLite at synchronous FULL) knows some hundred photos and fine-tunes a network.
16 clients send events, each as soon as its last one is answered; four more ask for suggestions all the time. Every
annotation that was acknowledged must be stored in the end.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.described import described
from benchmarks.load_clients import FIRST_ANNOTATION, Answers, Request, annotation_event, send, suggestion_request
from benchmarks.serving_world import Photos, descendants, serving_tandem, training_process

N_PHOTOS = 400
N_ASKING = 4
REQUIRED_P99_MS = 250.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--backbone", default="resnet18", help="one that trains for longer than the events take")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as senders,
        serving_tandem(arguments.backbone, N_PHOTOS) as (tandem, supervisor),
    ):
        photos, over = tandem.photos, tandem.folder / "over"
        tandem.learn(N_PHOTOS)
        tandem.fine_tune()
        trained = training_process(supervisor)
        started_s = time.perf_counter()
        asking = senders.submit(ask_until, tandem.port, photos, over)
        events = senders.submit(send_events, tandem.port, photos, arguments.events, arguments.clients).result()
        elapsed_s = time.perf_counter() - started_s
        over.touch()
        suggestions = asking.result()
        still_training = trained in descendants(supervisor)
        stored = stored_annotations(tandem.folder)
    acknowledged = events.statuses["/webhook"][200]
    results = {
        "events": arguments.events,
        "clients": arguments.clients,
        "acknowledged": acknowledged,
        "stored": stored,
        "events_per_s": round(arguments.events / elapsed_s, 1),
        "webhook": events.percentiles_ms("/webhook"),
        "suggestions": sum(suggestions.statuses["/predict"].values()),
        "suggestions_answered": suggestions.statuses["/predict"][200],
        "predict": suggestions.percentiles_ms("/predict"),
        "trained_to_the_end_of_it": still_training,
    }
    show(results)
    if arguments.output:
        arguments.output.write_text(json.dumps(described() | results, indent=2) + "\n")
    if stored < acknowledged or acknowledged < arguments.events:
        raise SystemExit(f"{arguments.events} events were sent, {acknowledged} acknowledged and {stored} stored")
    if events.percentiles_ms("/webhook")["p99_ms"] > REQUIRED_P99_MS:
        raise SystemExit(f"the 99th percentile is above {REQUIRED_P99_MS:g} ms")
    if not still_training:
        raise SystemExit("the training ended before the last event: name a --backbone that takes longer")


def send_events(port: int, photos: Photos, n_events: int, n_clients: int) -> Answers:
    return send(port, (annotation_event(photos, number, N_PHOTOS) for number in range(n_events)), n_clients)


def ask_until(port: int, photos: Photos, over: Path) -> Answers:
    """Ask for suggestions until a file is there."""
    ended = threading.Event()

    def watch() -> None:
        while not over.exists():
            time.sleep(0.2)
        ended.set()

    def requests() -> Iterator[Request]:
        for number in count():
            if ended.is_set():
                return
            yield suggestion_request(photos, number, N_PHOTOS)

    threading.Thread(target=watch).start()
    return send(port, requests(), N_ASKING, per_s=20.0)


def stored_annotations(model_dir: Path) -> int:
    """Return how many of the annotations that were sent are there."""
    with closing(sqlite3.connect(model_dir / "tandem.sqlite3")) as connection:
        statement = "SELECT count(*) FROM annotation WHERE id >= ? AND deleted_at IS NULL"
        return int(connection.execute(statement, (FIRST_ANNOTATION,)).fetchone()[0])


def show(results: dict[str, Any]) -> None:
    table = Table("what", "measured")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
