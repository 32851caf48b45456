"""What labels are worth: Tandem against its peers, on the same photos, weights, splits and draws.

    python benchmarks/learning.py --images DIR --weights-dir DIR --test-split FILE

DIR of images holds sets in the form `tandem fit` takes; FILE is JSON, from the name of a set to the files of its test
part; DIR of weights holds state dicts of torchvision's layout, named `<backbone>-….pth`. Photos and weights are no
part of the project.

A draw labels n images of each class (seeds 1, 2, 3), the rest without the test part is the pool. All runs are kept
as they finish: start the same command again and it goes on. fastai comes with `uv sync --group peers`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from rich.console import Console

from backend.processes import one_linear_algebra_thread
from benchmarks.described import described
from benchmarks.frozen import DEFAULTS, logistic_regression, tandem
from benchmarks.image_sets import ImageSet, Split, read_image_sets
from benchmarks.learning_report import BASELINE, WHOLE_POOL, draw, show, summarise
from benchmarks.learning_runs import Combination, FeatureMemory, Outcome, Run, RunFile
from benchmarks.networks import Pretrained
from benchmarks.peers import Lesson, Peer, keras_recipe, official_loop, run_peer
from model.features import choose_device

Method = Callable[[Split, Pretrained, int, str, FeatureMemory], Outcome]
RESULTS = Path(__file__).parent / "results"
TABLE_WIDTH = 150
LIBRARIES = ("torch", "torchvision", "scikit-learn", "numpy", "fastai")


def main() -> None:
    arguments = parse_arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(arguments.threads)
    one_linear_algebra_thread()
    methods = choose_methods(arguments.methods, finetune=arguments.finetune, bfloat16=arguments.bfloat16)
    image_sets = {each.name: each for each in read_image_sets(arguments.images, arguments.test_split, arguments.sets)}
    backbones = {name: Pretrained.find(name, arguments.weights_dir) for name in arguments.backbones}
    file = RunFile(arguments.output)
    file.drop(arguments.again)
    planned = plan(image_sets, list(backbones), arguments.sizes, arguments.seeds, list(methods))
    console, description = Console(), describe(arguments)
    console.width = max(console.width, TABLE_WIDTH)
    for run in runs_to_do(planned, file, methods, image_sets, backbones, arguments):
        file.runs.append(run)
        file.write(description, summarise(file.runs))
        console.print(
            f"{' '.join(map(str, run.combination))}: macro-F1 {100 * run.macro_f1:.1f}, ECE {run.ece:.3f}, "
            f"{run.wall_s:.1f} s {run.note}",
            highlight=False,
            soft_wrap=True,
        )
    summary = summarise(file.runs)
    file.write(description, summary)
    show(summary, console)
    if any(run.n_per_class != WHOLE_POOL for run in file.runs):
        draw(file.runs, arguments.figure)


def runs_to_do(
    planned: Sequence[Combination],
    file: RunFile,
    methods: dict[str, Method],
    image_sets: dict[str, ImageSet],
    backbones: dict[str, Pretrained],
    arguments: argparse.Namespace,
) -> Iterator[Run]:
    """Carry out what is planned and not in the file, until the time is over."""
    finished = {run.combination for run in file.runs}
    deadline_s = time.monotonic() + 60 * arguments.max_minutes
    memory, device = FeatureMemory(), choose_device(arguments.device)
    for combination in planned:
        if combination in finished:
            continue
        if time.monotonic() > deadline_s:
            return
        split = image_sets[combination.image_set].draw(combination.n_per_class, combination.seed)
        outcome = methods[combination.method](split, backbones[combination.backbone], combination.seed, device, memory)
        yield Run(
            **asdict(outcome),
            **combination._asdict(),
            n_labels=len(split.train.paths),
            device=device,
            threads=arguments.threads,
            load=round(os.getloadavg()[0], 1),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, methods=list(all_methods()), output=RESULTS / "learning.json")
    parser.add_argument("--no-finetune", dest="finetune", action="store_false", help="only heads of ours")
    parser.add_argument("--bfloat16", action="store_true", help="peers that train a network compute in it, for speed")
    parser.add_argument("--figure", type=Path, default=RESULTS / "learning.png")
    return checked(parser)


def make_parser(description: str | None, *, methods: list[str], output: Path) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark on photos has to be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--test-split", type=Path)
    parser.add_argument("--sets", nargs="+", help="all of the test split without it")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "densenet121"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 25, 50], help="labels per class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=methods)
    parser.add_argument("--again", nargs="+", default=[], metavar="METHOD", help="drop the runs of these methods first")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, for every method")
    parser.add_argument("--output", type=Path, default=output)
    return parser


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and end the benchmark where photos or weights are not there."""
    arguments = parser.parse_args()
    for option in ("--images", "--weights-dir", "--test-split"):
        path = getattr(arguments, option.strip("-").replace("-", "_"))
        if path is None or not path.exists():
            parser.error(
                f"photos and weights are no part of this project: give --images DIR --weights-dir DIR --test-split FILE"
                f" ({option} {path} does not exist); --help says what they hold"
            )
    return arguments


def all_methods(*, bfloat16: bool = False) -> dict[str, Method]:
    """Return the methods by name, in the order of what they cost."""
    ours = {"tandem": (True, True), "tandem-no-pool": (False, True)}
    heads = {"tandem-head": (True, False), "tandem-head-no-pool": (False, False)}
    trained = {
        "keras-frozen": partial(keras_recipe, frozen=True),
        "fastai": _fastai,
        "official-loop": official_loop,
        "keras-unfrozen": partial(keras_recipe, frozen=False),
    }
    return {
        BASELINE: logistic_regression,
        **{
            name: partial(tandem, with_pool=with_pool, finetune=finetune)
            for name, (with_pool, finetune) in {**ours, **heads}.items()
        },
        **{name: _method(peer, bfloat16=bfloat16) for name, peer in trained.items()},
    }


def _method(peer: Peer, *, bfloat16: bool) -> Method:
    def run(split: Split, pretrained: Pretrained, seed: int, device: str, memory: FeatureMemory) -> Outcome:
        del memory  # what a peer needs changes at every step
        lesson = Lesson(split=split, pretrained=pretrained, seed=seed, device=device, bfloat16=bfloat16)
        return run_peer(peer, lesson)

    return run


def _fastai(lesson: Lesson) -> Any:
    from benchmarks.fastai_peer import fastai_fine_tune

    return fastai_fine_tune(lesson)


def choose_methods(names: Sequence[str] | None, *, finetune: bool, bfloat16: bool) -> dict[str, Method]:
    """Return the methods asked for; without names all, ours either with or without fine-tuning."""
    methods = all_methods(bfloat16=bfloat16)
    if names is None:
        left_out = ("tandem-head", "tandem-head-no-pool") if finetune else ("tandem", "tandem-no-pool")
        names = [name for name in methods if name not in left_out]
    if "fastai" in names:
        if importlib.util.find_spec("fastai") is None:
            raise SystemExit("fastai is not installed: uv sync --group peers, or name other --methods")
        importlib.import_module("benchmarks.fastai_peer")  # its seconds are nobody's training time
    return {name: methods[name] for name in names}


def plan(
    image_sets: dict[str, ImageSet],
    backbones: Iterable[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[str],
) -> list[Combination]:
    """Return all runs: first those without training, then the others seed by seed, small ones first."""
    combinations = [
        Combination(image_set, backbone, size, seed, method)
        for method in methods
        for image_set in image_sets
        for backbone in backbones
        for size in sizes
        for seed in seeds
    ]
    if BASELINE in methods:
        whole = [Combination(each, backbone, WHOLE_POOL, 0, BASELINE) for each in image_sets for backbone in backbones]
        combinations = whole + combinations

    def order(combination: Combination) -> tuple[int, ...]:
        n_labels = image_sets[combination.image_set].n_labels(combination.n_per_class)
        head_only = combination.method.startswith("tandem-head") or (
            combination.method.startswith("tandem") and n_labels < DEFAULTS.finetune_min_labels
        )
        if combination.method == BASELINE or head_only:
            return (0,)
        return (1, combination.seed, combination.n_per_class)

    return sorted(combinations, key=order)


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what one must know of the machine, the software and the command."""
    options = {
        name: value
        for name, value in vars(arguments).items()
        if not isinstance(value, Path) and value not in (None, [], float("inf"))
    }
    return {
        **described(*LIBRARIES, gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None),
        "options": options,
    }


if __name__ == "__main__":
    main()
