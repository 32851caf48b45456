"""What it costs to decode each image in a process that may die of it, beside decoding in threads of one's own.

    python benchmarks/decoding.py [--backbone mobilenet_v3_large] [--images 48] [--rounds 15]
        [--output benchmarks/results/decoding.json]

Stands alone: JPEGs are generated as for benchmarks/embedding.py, weights are random. Both ways embed the same images in
turns; times are the smallest of all rounds, of the processors' clocks for all processes together, because other work on
the machine moves the wall clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.described import described
from benchmarks.embedding import IMAGE_SIZES, photo
from model.backbones import load_backbone
from model.decoding import Decoders
from model.features import Engine, Views
from model.transforms import to_views

MAX_PIXELS = 100_000_000
N_DIFFERENT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one image with all that makes it features; ``ratio`` is of the smallest processor times.

    ``memory_mb`` is what each decoding process shares with no other.
    """

    size: str
    file_kb: float
    threads_ms: float
    processes_ms: float
    ratio: float
    median_ratio: float
    threads_images_per_s: float
    processes_images_per_s: float
    memory_mb: float


def processor_s(process_ids: list[int]) -> float:
    """Return the processor time that this process and others, each of one thread, have taken."""
    others = sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in process_ids)
    return time.process_time() + others / 1e9


def private_mb(process_id: int) -> float:
    """Return the memory that a process shares with no other."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure(engine: Engine, decoders: Decoders, size: str, paths: list[Path], rounds: int) -> Cost:
    """Embed the same images both ways, in turns."""
    ways: dict[str, Views[Path]] = {"threads": to_views, "processes": decoders.views}
    rows = {name: engine.embed(paths, max_pixels=MAX_PIXELS, views=views).features for name, views in ways.items()}
    np.testing.assert_array_equal(rows["threads"], rows["processes"])
    pids = decoders.process_ids()
    processor: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, views in ways.items():
            started, started_s = processor_s(pids), time.perf_counter()
            engine.embed(paths, max_pixels=MAX_PIXELS, views=views)
            processor[name].append(1000 * (processor_s(pids) - started) / len(paths))
            wall[name].append((time.perf_counter() - started_s) / len(paths))
    best = {name: min(times) for name, times in processor.items()}
    medians = {name: statistics.median(times) for name, times in processor.items()}
    return Cost(
        size=size,
        file_kb=sum(path.stat().st_size for path in paths) / len(paths) / 1024,
        threads_ms=best["threads"],
        processes_ms=best["processes"],
        ratio=best["processes"] / best["threads"],
        median_ratio=medians["processes"] / medians["threads"],
        threads_images_per_s=1 / min(wall["threads"]),
        processes_images_per_s=1 / min(wall["processes"]),
        memory_mb=max(private_mb(pid) for pid in pids),
    )


def table_of(costs: list[Cost]) -> Table:
    columns = ("Image", "KB", "Threads, ms", "Processes, ms", "Ratio", "of medians", "Images/s", "Images/s", "MB each")
    table = Table(*columns, title="Decoding and embedding, per image")
    for each in costs:
        times = f"{each.threads_ms:.2f}", f"{each.processes_ms:.2f}", f"{each.ratio:.3f}", f"{each.median_ratio:.3f}"
        rates = f"{each.threads_images_per_s:.0f}", f"{each.processes_images_per_s:.0f}"
        table.add_row(each.size, f"{each.file_kb:.0f}", *times, *rates, f"{each.memory_mb:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v3_large")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(load_backbone(arguments.backbone, "none", n_views=2))
    decoders = Decoders()
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for size, (width, height) in IMAGE_SIZES.items():
            photos = [photo(width, height, seed) for seed in range(N_DIFFERENT)]
            paths = [Path(folder) / f"{size}-{number}.jpg" for number in range(arguments.images)]
            for number, path in enumerate(paths):
                path.write_bytes(photos[number % N_DIFFERENT])
            costs.append(measure(engine, decoders, size, paths, arguments.rounds))
    decoders.close()
    Console().print(table_of(costs))
    if arguments.output:
        report = {
            **described("numpy", "pillow", "torch", "torchvision", "openvino"),
            "backbone": arguments.backbone,
            "runtime": engine.runtime.name,
            "costs": [asdict(cost) for cost in costs],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
