"""What each part of the recipe is worth: the whole, and the whole with one thing changed, on the same draws.

    python benchmarks/ablation.py --images DIR --weights-dir DIR --test-split FILE

Heads are learned on features that are computed once, at every size, on every set, with both backbones. Networks are
fine-tuned, where nothing else is said, on one set with one backbone at one size: a run takes minutes. Photos, weights,
draws and the file that keeps all runs are as in `benchmarks/learning.py`. What a backbone was pretrained to say of the
classes is left out of everything.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

import structlog
import torch
from rich.console import Console
from rich.table import Table

from backend.processes import one_linear_algebra_thread
from backend.services import folders
from benchmarks.ablation_heads import HEADS
from benchmarks.ablation_networks import NETWORKS
from benchmarks.image_sets import read_image_sets
from benchmarks.learning import RESULTS, TABLE_WIDTH, checked, describe, make_parser, runs_to_do
from benchmarks.learning_runs import Combination, Run, RunFile
from benchmarks.networks import Pretrained

WHOLE = {next(iter(variants)): list(variants) for variants in (HEADS, NETWORKS)}
"""The recipe, and its variants with the recipe itself first."""


def main() -> None:
    arguments = parse_arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(arguments.threads)
    one_linear_algebra_thread()
    image_sets = {each.name: each for each in read_image_sets(arguments.images, arguments.test_split, arguments.sets)}
    names = dict.fromkeys([*arguments.backbones, *arguments.tuned_backbones])
    backbones = {name: Pretrained.find(name, arguments.weights_dir) for name in names}
    file, console = RunFile(arguments.output), Console()
    file.drop(arguments.again)
    description = describe(arguments)
    planned = plan(arguments, image_sets)
    with patch.object(folders, "opinion_of", lambda *_: None):
        for run in runs_to_do(planned, file, {**HEADS, **NETWORKS}, image_sets, backbones, arguments):
            file.runs.append(run)
            file.write(description, {})
            found = f"macro-F1 {100 * run.macro_f1:.1f}, ECE {run.ece:.3f}, {run.cpu_s:.1f} s {run.note}"
            console.print(f"{' '.join(map(str, run.combination))}: {found}", highlight=False, soft_wrap=True)
    summary = summarise(file.runs)
    console.width = max(console.width, TABLE_WIDTH)
    file.write(description, summary)
    show(summary, console)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, methods=[*HEADS, *NETWORKS], output=RESULTS / "ablation.json")
    parser.add_argument("--tuned-sets", nargs="*", default=["trash"], help="sets to fine-tune on")
    parser.add_argument("--tuned-backbones", nargs="*", default=["mobilenet_v2"], help="networks to fine-tune")
    parser.add_argument("--tuned-sizes", type=int, nargs="*", default=[50], help="labels per class for fine-tuning")
    return checked(parser)


def plan(arguments: argparse.Namespace, image_sets: Iterable[str]) -> list[Combination]:
    """Return all runs, draw by draw: heads first, then networks."""
    methods = arguments.methods or [*HEADS, *NETWORKS]
    heads = [
        Combination(image_set, backbone, size, seed, method)
        for seed in arguments.seeds
        for image_set in image_sets
        for backbone in arguments.backbones
        for size in arguments.sizes
        for method in methods
        if method in HEADS
    ]
    networks = [
        Combination(image_set, backbone, size, seed, method)
        for seed in arguments.seeds
        for image_set in arguments.tuned_sets
        for backbone in arguments.tuned_backbones
        for size in arguments.tuned_sizes
        for method in methods
        if method in NETWORKS
    ]
    return heads + networks


def summarise(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return, by labels per class, a row per variant: means over its runs, and how far it is from the recipe.

    What is fine-tuned is held against the head that needs none, too. Differences are of runs on the same images,
    weights and draw; ``standard_error`` is that of their mean.
    """
    known = {run.combination: run for run in runs}
    summary: dict[str, list[dict[str, Any]]] = {}
    for whole, variants in WHOLE.items():
        for size in sorted({run.n_per_class for run in runs if run.method == whole}):
            rows = []
            for variant in variants:
                own = [run for run in runs if run.method == variant and run.n_per_class == size]
                rows += _rows(variant, own, known, whole)
            summary[f"{whole}, {size} labels per class"] = rows
    return summary | _fine_tuned(runs, known)


def _fine_tuned(runs: Sequence[Run], known: dict[Combination, Run]) -> dict[str, list[dict[str, Any]]]:
    """Return what fine-tuning brings by set, backbone and size, by set alone, and its two kinds beside each other."""
    network, last_block = next(iter(NETWORKS)), list(NETWORKS)[-1]
    own = [run for run in runs if run.method in (network, last_block)]
    in_detail, by_set = [], []
    for place in sorted({run.combination._replace(seed=0, method="") for run in own}):
        alike = [run for run in runs if run.combination._replace(seed=0, method="") == place]
        seeds = {run.seed for run in alike if run.method == network} or {run.seed for run in alike}
        for method in (next(iter(HEADS)), network, last_block):
            chosen = [run for run in alike if run.method == method and run.seed in seeds]
            in_detail += _rows(" ".join(map(str, (*place[:3], method))), chosen, known, next(iter(HEADS)))
    for image_set in sorted({run.image_set for run in own}):
        chosen = [run for run in own if run.image_set == image_set and run.method == last_block]
        by_set += _rows(f"{last_block}, {image_set}", chosen, known, next(iter(HEADS)))
    beside = _rows(last_block, [run for run in own if run.method == last_block], known, network)
    titles = ("fine-tuned, beside the head", "by set, beside the head", "beside the whole network")
    return {title: rows for title, rows in zip(titles, (in_detail, by_set, beside), strict=True) if rows}


def _rows(variant: str, runs: Sequence[Run], known: dict[Combination, Run], other: str) -> list[dict[str, Any]]:
    """Return the row of a variant, or none where no run of it has a counterpart."""
    pairs = [(run, known[key]) for run in runs if (key := run.combination._replace(method=other)) in known]
    return [_row(variant, pairs)] if pairs else []


def _row(variant: str, pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    points = [100 * (run.macro_f1 - whole.macro_f1) for run, whole in pairs]
    return {
        "variant": variant,
        "runs": len(pairs),
        "macro_f1": fmean(run.macro_f1 for run, _ in pairs),
        "points": fmean(points),
        "standard_error": stdev(points) / len(points) ** 0.5 if len(points) > 1 else None,
        "ece": fmean(run.ece for run, _ in pairs),
        "ece_difference": fmean(run.ece - whole.ece for run, whole in pairs),
        "log_loss": fmean(run.log_loss for run, _ in pairs),
        "cpu_s": fmean(run.cpu_s for run, _ in pairs),
    }


def show(summary: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print a table for each number of labels per class."""
    for title, rows in summary.items():
        table = Table(
            "", "runs", "macro-F1", "points", "standard error", "ECE", "change", "log loss", "CPU s", title=title
        )
        for row in rows:
            error = row["standard_error"]
            table.add_row(
                row["variant"],
                str(row["runs"]),
                f"{100 * row['macro_f1']:.1f}",
                f"{row['points']:+.1f}",
                "-" if error is None else f"{error:.1f}",
                f"{row['ece']:.3f}",
                f"{row['ece_difference']:+.3f}",
                f"{row['log_loss']:.3f}",
                f"{row['cpu_s']:.1f}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
