"""How close embedding and training come to the bare network on the same device.

    python -m benchmarks.gpu [--backbones resnet50 mobilenet_v3_large] [--output benchmarks/results/gpu.json]

Bare is a loop over one batch that lies on the device already: forward for embedding; forward, backward and step of
the optimizer for training; with the same batch size and precision, and torch's own settings. Beside it stand
``Engine.embed`` and ``train_one_epoch``, with images as files, and with images that somebody has decoded already.
Files cannot go faster than the processors decode, so that is measured too, and files are compared with the lower of
the two limits. Images are generated JPEGs of 640 x 480 pixels, weights are random: neither changes the speed.

All of it takes turns, round by round, and what is printed are medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.described import described
from benchmarks.gpu_training import Memory, measure_memory, measure_training
from benchmarks.rates import MAX_PIXELS, Rates, decode_all, summed_up, take_turns, whole_backbone, write_images
from model.backbones import Backbone
from model.features import Engine, choose_device
from model.precision import bfloat16_pays
from model.transforms import normalise, to_pixels


def measure_embedding(backbone: Backbone, sources: Sequence[Path], device: str, n_rounds: int) -> Rates:
    engine, spec = Engine(backbone, device), backbone.input_spec
    size = min(engine.batch_size, len(sources))
    n_images = len(sources) // size * size
    stacked = np.stack([to_pixels(source, spec, max_pixels=MAX_PIXELS) for source in sources[:size]])
    # where the engine puts them too
    pixels = torch.from_numpy(stacked).pin_memory().numpy() if device == "cuda" else stacked
    dtype = torch.bfloat16 if bfloat16_pays(device) else torch.float32
    network = copy.deepcopy(backbone.network).to(device, dtype).to(memory_format=torch.channels_last)
    images = normalise(pixels, spec, device).to(dtype)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(n_images // size):
            network(images)

    def decoded() -> None:
        for _ in range(n_images // size):
            engine.runtime(pixels)

    def decode(row: int) -> object:
        return to_pixels(sources[row], spec, max_pixels=MAX_PIXELS)

    works: dict[str, Callable[[], object]] = {
        "bare": bare,
        "decoded": decoded,
        "files": lambda: engine.embed(sources[:n_images], max_pixels=MAX_PIXELS),
        "decoding": lambda: decode_all(decode, n_images),
    }
    return summed_up(backbone, "embed", size, take_turns(works, n_images, device, n_rounds))


def show(rates: Sequence[Rates], memories: Sequence[Memory]) -> None:
    columns = ("backbone", "work", "batch", "bare", "decoded", "share", "files", "decoding", "share")
    table = Table(*columns, title="Images per second")
    for each in rates:
        table.add_row(
            *(each.backbone, each.work, str(each.batch_size), f"{each.bare:.0f}"),
            *(f"{each.decoded:.0f}", f"{each.share_decoded:.2f}"),
            *(f"{each.files:.0f}", f"{each.decoding:.0f}", f"{each.share_files:.2f}"),
        )
    Console().print(table)
    if memories:
        table = Table("backbone", "training", "before", "during", "after the child", title="Device memory in MiB")
        for memory in memories:
            row = (memory.training_peak, memory.before_child, memory.during_child, memory.after_child)
            table.add_row(memory.backbone, *(f"{value:.0f}" for value in row))
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only proves that it runs")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenet_v3_large"])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=64, help="of training; embedding has its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    rates: list[Rates] = []
    memories: list[Memory] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_images(folder, arguments.images)
        for backbone_name in arguments.backbones:
            backbone = whole_backbone(backbone_name, folder)
            rates.append(measure_embedding(backbone, sources, device, arguments.rounds))
            rates.append(measure_training(backbone, sources, device, arguments.rounds, arguments.batch_size))
            if device == "cuda":
                memories.append(measure_memory(backbone_name, sources, folder, arguments.batch_size))
    show(rates, memories)
    if arguments.output:
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        report = {
            **described("torch", "torchvision", "pillow", "numpy", device=name),
            "images": arguments.images,
            "rounds": arguments.rounds,
            "rates": [asdict(each) for each in rates],
            "memory": [asdict(each) for each in memories],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
