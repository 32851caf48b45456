"""How long a label takes to become a newer active version, and a pushed suggestion.

    python -m benchmarks.loop [--labels 32 50 500 5000] [--repeats 5] [--output benchmarks/results/loop.json]
    python -m benchmarks.loop --images DIR --weights-dir DIR --test-split FILE --labels 32 500 [--rounds 3]

A real web process and a real worker run on loopback with TRAIN_QUIET_S=0, for a project with the labels given and a
thousand images more. Features are stored as if images had been embedded; they are synthetic, of ten classes, or of
photos (images, weights and test split are those of `benchmarks/learning.py`). With photos each round of labels is
followed by what Label Studio's former example did at every label, training the network anew, in this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backend.domain import JobKind, JobStatus, ModelVersion, VersionStatus
from backend.ports import Database
from benchmarks.active import embedded
from benchmarks.described import described
from benchmarks.image_sets import ImageSet, Split, read_image_sets
from benchmarks.learning_runs import Cost, Stopwatch
from benchmarks.loop_world import KnownImages, LabelStudioStandIn, World, wait_for, world
from benchmarks.networks import Pretrained
from benchmarks.peers import Lesson, official_loop

N_OTHERS = 1100
REST_S = 2.0
TABLE_WIDTH = 150

Peer = Callable[[int], Cost]
"""Learns from so many labels as the former example did, and tells what it cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One label: seconds since it was submitted, and of the processors' time in all processes of Tandem."""

    webhook_s: float
    active_s: float
    pushed_s: float
    chosen_s: float
    cpu_active_s: float
    cpu_pushed_s: float
    cpu_chosen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Medians over the labels, the slowest of them, and the median of the former example's trainings if there were any.

    A version is active once requests are answered by it; pushed once its suggestions are stored in Label Studio;
    chosen once what to label next is shown there.
    """

    n_labels: int
    repeats: int
    median: Sample
    slowest: Sample
    former_example_cpu_s: float | None
    former_example_wall_s: float | None


def newest(database: Database) -> ModelVersion | None:
    """Return the newest version of which it is decided whether it serves; asking costs Tandem nothing."""
    with database.snapshot() as stores:
        decided = (each for each in stores.versions.all(1) if each.status is not VersionStatus.CANDIDATE)
        return next(decided, None)


def has_learned(database: Database, n_labels: int) -> bool:
    version = newest(database)
    return version is not None and version.n_labels == n_labels


def has_chosen(database: Database, since: datetime) -> bool:
    """Tell whether what to label next was chosen and shown since a moment."""
    with database.snapshot() as stores:
        last = stores.jobs.newest(1, JobKind.QUERY)
    if last is not None and last.status is JobStatus.FAILED:
        raise SystemExit(f"what to label next was not chosen: {last.reason}")
    return last is not None and last.created_at > since and last.status is JobStatus.SUCCEEDED


def measure_label(tandem: World, task_id: int) -> Sample | None:
    """Measure one label; nothing where the newer version was no better, and rejected."""
    time.sleep(REST_S)
    cpu_before = tandem.cpu_seconds()
    started, moment = time.monotonic(), datetime.now(UTC)
    tandem.submit(task_id)
    submitted = time.monotonic()
    decided = wait_for(lambda: has_learned(tandem.database, task_id), f"version with {task_id} labels")
    cpu_active_s = tandem.cpu_seconds() - cpu_before
    version = newest(tandem.database)
    if version is None or version.status is not VersionStatus.ACTIVE:
        return None
    pushed = wait_for(lambda: LabelStudioStandIn.model_version == version.name, f"push of {version.name}")
    cpu_pushed_s = tandem.cpu_seconds() - cpu_before
    chosen = wait_for(lambda: has_chosen(tandem.database, moment), "choice of what to label next")
    return Sample(
        webhook_s=submitted - started,
        active_s=decided - started,
        pushed_s=pushed - started,
        chosen_s=chosen - started,
        cpu_active_s=cpu_active_s,
        cpu_pushed_s=cpu_pushed_s,
        cpu_chosen_s=tandem.cpu_seconds() - cpu_before,
    )


def over(samples: list[Sample], summarise: Callable[[list[float]], float]) -> Sample:
    """Summarise each of the seconds for itself."""
    rows = [asdict(sample) for sample in samples]
    return Sample(**{name: summarise([row[name] for row in rows]) for name in rows[0]})


def measure(images: KnownImages, n_labels: int, repeats: int, peer: Peer | None, rounds: int) -> Measurement:
    """Measure label after label, `repeats` in each round, and the peer after each of the rounds."""
    samples: list[Sample] = []
    costs: list[Cost] = []
    with world(images, n_labels) as tandem:
        tandem.submit(n_labels)
        wait_for(lambda: has_learned(tandem.database, n_labels), "first version")
        tries = (measure_label(tandem, task_id) for task_id in range(n_labels + 1, len(images.classes) + 1))
        for _ in range(rounds):
            samples += islice((sample for sample in tries if sample), repeats)
            costs += [peer(n_labels)] if peer else []
    return Measurement(
        n_labels=n_labels,
        repeats=len(samples),
        median=over(samples, statistics.median),
        slowest=over(samples, max),
        former_example_cpu_s=statistics.median(cost.cpu_s for cost in costs) if costs else None,
        former_example_wall_s=statistics.median(cost.wall_s for cost in costs) if costs else None,
    )


def known(image_set: ImageSet, order: list[int], pretrained: Pretrained) -> KnownImages:
    """Embed photos as Tandem does, and put them in an order."""
    labelled = embedded(image_set, pretrained.name, pretrained.weights, None)
    return KnownImages(
        class_names=image_set.pool.schema.class_names,
        classes=np.asarray(labelled.images.targets)[order],
        features=np.asarray(labelled.images.features)[order],
        block_sizes=labelled.block_sizes,
    )


def former_example(image_set: ImageSet, order: list[int], pretrained: Pretrained) -> Peer:
    """Return what learns from the first photos in an order as the former example did."""

    def learn(n_labels: int) -> Cost:
        is_labelled = np.isin(np.arange(len(order)), order[:n_labels])
        split = Split(train=image_set.pool.part(is_labelled), pool=(), test=image_set.test)
        stopwatch = Stopwatch()
        official_loop(Lesson(split=split, pretrained=pretrained, seed=0, device="cpu"))
        return stopwatch.read()

    return learn


def show(measurements: list[Measurement]) -> None:
    columns = ("labels", "webhook s", "active s", "worst", "pushed s", "worst", "chosen s", "cpu s active", "pushed")
    table = Table(*columns, "chosen", "example cpu s", "times active", title="From a submitted label to …")
    for each in measurements:
        median, slowest = each.median, each.slowest
        seconds = (median.webhook_s, median.active_s, slowest.active_s, median.pushed_s, slowest.pushed_s)
        cpu_seconds = (median.chosen_s, median.cpu_active_s, median.cpu_pushed_s, median.cpu_chosen_s)
        example = each.former_example_cpu_s
        compared = (f"{example:.1f}", f"{example / median.cpu_active_s:.0f}") if example else ("", "")
        table.add_row(str(each.n_labels), *(f"{value:.3f}" for value in (*seconds, *cpu_seconds)), *compared)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[32, 50, 500, 5000])
    parser.add_argument("--repeats", type=int, default=5, help="labels of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=Path, help="folder of sets of photos")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--test-split", type=Path)
    parser.add_argument("--set", default="trash", help="the set of photos, each of one class")
    parser.add_argument("--backbone", default="mobilenet_v2")
    arguments = parser.parse_args()
    if arguments.images and not (arguments.weights_dir and arguments.test_split):
        parser.error("--images needs --weights-dir and --test-split")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    peer: Peer | None = None
    images = KnownImages.synthetic(max(arguments.labels) + N_OTHERS)
    if arguments.images:
        (image_set,) = read_image_sets(arguments.images, arguments.test_split, [arguments.set])
        pretrained = Pretrained.find(arguments.backbone, arguments.weights_dir)
        order = np.random.default_rng(0).permutation(len(image_set.pool.paths)).tolist()
        images, peer = known(image_set, order, pretrained), former_example(image_set, order, pretrained)
    measurements = [
        measure(images.first(n_labels + N_OTHERS), n_labels, arguments.repeats, peer, arguments.rounds)
        for n_labels in arguments.labels
    ]
    show(measurements)
    if arguments.output:
        report = {
            **described("numpy", "scipy", "torch", "torchvision"),
            "images": f"{arguments.set}, {arguments.backbone}" if arguments.images else "synthetic",
        }
        results = {"results": [asdict(each) for each in measurements]}
        arguments.output.write_text(json.dumps(report | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
