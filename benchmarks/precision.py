"""What training in bfloat16 costs on a processor, beside float32, for one batch that lies in memory.

    python benchmarks/precision.py [--backbones resnet50] [--output benchmarks/results/precision.json]

A step is forward, backward and optimizer, statistics of batch normalisation frozen as in a fine-tuning of ours. Three
ways take turns: everything in float32; torch's autocast to bfloat16; and ours, with depthwise convolutions left in
float32. Weights are random: that does not change the speed. What is printed are medians of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision import models

from benchmarks.described import described
from model.precision import bfloat16_pays, keep_depthwise_in_float32
from model.schedule import freeze_batch_norm_statistics

BACKBONES = ("mobilenet_v3_large", "mobilenet_v2", "efficientnet_b0", "densenet121", "resnet50", "convnext_tiny")
CROP_SIZE = 224


def step_of(name: str, batch_size: int, *, bfloat16: bool, depthwise_in_float32: bool) -> Callable[[], None]:
    """Return a function that takes one step of training a network."""
    network = models.get_model(name, weights=None, num_classes=10).train().to(memory_format=torch.channels_last)
    freeze_batch_norm_statistics(network)
    if depthwise_in_float32:
        keep_depthwise_in_float32(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    images = torch.randn(batch_size, 3, CROP_SIZE, CROP_SIZE).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch_size) % 10

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds_of(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(name: str, batch_size: int, n_rounds: int) -> dict[str, float]:
    """Return the processor time of a step by each way, in seconds, and ours as a share of float32's."""
    make = partial(step_of, name, batch_size)
    steps = {
        "float32": make(bfloat16=False, depthwise_in_float32=False),
        "autocast": make(bfloat16=True, depthwise_in_float32=False),
        "ours": make(bfloat16=True, depthwise_in_float32=True),
    }
    for step in steps.values():
        step()
    rounds = [{way: seconds_of(step) for way, step in steps.items()} for _ in range(n_rounds)]
    medians = {way: statistics.median(each[way] for each in rounds) for way in steps}
    return medians | {"share": statistics.median(each["ours"] / each["float32"] for each in rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not bfloat16_pays("cpu", training=True):
        raise SystemExit("this processor has no instructions for bfloat16: there is nothing to compare")
    results = {name: measure(name, arguments.batch_size, arguments.rounds) for name in arguments.backbones}
    table = Table("backbone", "float32", "autocast", "ours", "ours / float32", title="Seconds of processor time a step")
    for name, result in results.items():
        table.add_row(name, *(f"{result[way]:.2f}" for way in ("float32", "autocast", "ours", "share")))
    Console().print(table)
    if arguments.output:
        capabilities = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
        report = {
            **described("torch", "torchvision", capabilities=capabilities),
            "batch_size": arguments.batch_size,
            "rounds": arguments.rounds,
            "threads": arguments.threads,
            "cpu_s": results,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
