"""How fast images become features: decoding and resizing, and the network in each runtime there is here.

    python -m benchmarks.embedding [--backbones mobilenet_v3_large mobilenet_v2 resnet18 densenet121] [--threads 1]
        [--rounds 7] [--output benchmarks/results/embedding.json]

Stands alone: JPEGs are generated, with shapes of all sizes, soft and hard edges and noise; weights are random. What is
compared is measured in turns, once per round; times are the smallest of all rounds, of the processor's clock for
ratios, because other work on the machine moves the wall clock.

ONNX Runtime takes part where it is installed: uv pip install onnx onnxruntime
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.described import described
from model.backbones import Backbone, load_backbone
from model.runtimes import FromPixels, OpenvinoRuntime, TorchRuntime, choose_runtime
from model.transforms import InputSpec, normalise, to_pixels

IMAGE_SIZES = {"640 x 480": (640, 480), "1920 x 1080": (1920, 1080), "4000 x 3000": (4000, 3000)}
IMAGES_PER_SIZE = 2
BATCH_SIZES = (1, 8)
BACKBONES = ("mobilenet_v3_large", "mobilenet_v2", "resnet18", "densenet121")
PRESET = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
SPEC = InputSpec.from_preset(PRESET)
DRAFT_SIDE = 2 * SPEC.resize_size
N_JUDGED = 24

Decoder = Callable[[bytes], torch.Tensor]
Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Smallest times of one call, in seconds: of the processor, and on the wall."""

    processor_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """``ratio`` is to the canonical decoder's processor time; drift is from its pixels, in steps of 255."""

    size: str
    file_kb: float
    decoder: str
    processor_ms: float
    ratio: float
    mean_drift: float
    max_drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """``ratio`` is to the fastest runtime's processor time; agreement is with torch in float32, the worst of all.

    ``cosine`` is between features of one block of one image; ``deviation`` the mean difference over the spread
    between images, by block.
    """

    backbone: str
    batch_size: int
    runtime: str
    taken: bool
    processor_ms: float
    images_per_s: float
    ratio: float
    cosine: float
    deviation: float


def photo(width: int, height: int, seed: int) -> bytes:
    """Draw a JPEG with the detail of a photo."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 90), (16, 50), (64, 30), (256, 25), (1024, 15)):
        if 2 * cells <= width:
            shape = (cells * height // width + 2, cells + 2, 3)
            layer = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
            pixels += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) * np.float32(strength / 255)
    pixels += generator.normal(0, 3, (height, width, 1)).astype(np.float32)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        left, top = int(generator.integers(width)), int(generator.integers(height))
        size = int(generator.integers(4, width // 6))
        colour = tuple(generator.integers(0, 256, 3).tolist())
        draw.ellipse((left, top, left + size, top + size // 2), outline=colour, width=max(1, width // 400))
    file = BytesIO()
    image.save(file, format="JPEG", quality=90)
    return file.getvalue()


def preset_on(image: Image.Image) -> torch.Tensor:
    tensor: torch.Tensor = PRESET(image.convert("RGB"))
    return tensor


def drafted(content: bytes) -> torch.Tensor:
    image = Image.open(BytesIO(content))
    image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
    return preset_on(image)


def by_torchvision(content: bytes) -> torch.Tensor:
    tensor: torch.Tensor = PRESET(torchvision.io.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)))
    return tensor


def by_tandem(content: bytes) -> torch.Tensor:
    return normalise(to_pixels(content, SPEC, max_pixels=10**8)[None], SPEC)[0]


CANONICAL = "Pillow, then torchvision's preset"
DECODERS: Mapping[str, Decoder] = {
    CANONICAL: lambda content: preset_on(Image.open(BytesIO(content))),
    "Pillow's draft, then the preset": drafted,
    "torchvision's decoder, then the preset": by_torchvision,
    "Tandem": by_tandem,
}


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Call everything once per round, after one round that does not count."""
    processor: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            processor_before, wall_before = time.process_time(), time.perf_counter()
            call()
            if number:
                processor[name].append(time.process_time() - processor_before)
                wall[name].append(time.perf_counter() - wall_before)
    return {name: Times(processor_s=min(processor[name]), wall_s=min(wall[name])) for name in calls}


def measure_decoders(rounds: int) -> list[Decoding]:
    results = []
    steps = 255 * torch.tensor(SPEC.std).view(3, 1, 1)
    for size, (width, height) in IMAGE_SIZES.items():
        contents = [photo(width, height, seed) for seed in range(IMAGES_PER_SIZE)]
        calls = {name: partial(decode, contents[0]) for name, decode in DECODERS.items()}
        times = in_turns(calls, rounds)
        for name, decode in DECODERS.items():
            drifts = [((decode(each) - DECODERS[CANONICAL](each)) * steps).abs() for each in contents]
            results.append(
                Decoding(
                    size=size,
                    file_kb=len(contents[0]) / 1000,
                    decoder=name,
                    processor_ms=times[name].processor_s * 1000,
                    ratio=times[name].processor_s / times[CANONICAL].processor_s,
                    mean_drift=max(float(drift.mean()) for drift in drifts),
                    max_drift=max(float(drift.max()) for drift in drifts),
                )
            )
    return results


def random_backbone(name: str) -> Backbone:
    """Return a backbone that is built like a trained one."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(torchvision.models.get_model(name, weights=None).state_dict(), weights)
        return load_backbone(name, weights)


def eager(backbone: Backbone) -> Network:
    """Return the network as torch runs it when nothing is done: in float32, channels first."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = backbone.network(normalise(pixels, SPEC).contiguous()).numpy()
        return features

    return run


def by_onnx_runtime(backbone: Backbone) -> Network:
    """Return the network in ONNX Runtime, which has no bfloat16 for processors."""
    import onnxruntime

    file = BytesIO()
    example = torch.zeros(1, SPEC.crop_size, SPEC.crop_size, 3, dtype=torch.uint8)
    axes = {"pixels": {0: "n"}}
    network = FromPixels(backbone.network, SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has a newer way to export, which wants one more package
        torch.onnx.export(network, (example,), file, input_names=["pixels"], dynamic_axes=axes, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def networks(backbone: Backbone) -> dict[str, Network]:
    runtimes: list[TorchRuntime | OpenvinoRuntime] = [
        TorchRuntime(backbone, bfloat16=bfloat16) for bfloat16 in (False, True)
    ]
    if importlib.util.find_spec("openvino"):
        runtimes += [OpenvinoRuntime(backbone, bfloat16=bfloat16) for bfloat16 in (False, True)]
    others = {"torch float32, channels first": eager(backbone)}
    if importlib.util.find_spec("onnxruntime"):
        others["ONNX Runtime float32"] = by_onnx_runtime(backbone)
    return others | {runtime.name: runtime for runtime in runtimes}


def agreement(
    backbone: Backbone, network: Network, expected: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> tuple[float, float]:
    """Return the smallest cosine, and the largest deviation over spread, of all blocks."""
    ends = np.cumsum(backbone.block_sizes)[:-1]
    cosines, deviations = [], []
    for block, right in zip(np.split(network(pixels), ends, axis=1), np.split(expected, ends, axis=1), strict=True):
        lengths = np.linalg.norm(block, axis=1) * np.linalg.norm(right, axis=1)
        cosines.append(((block * right).sum(axis=1) / lengths).min())
        deviations.append(np.abs(block - right).mean() / right.std(axis=0).mean())
    return float(min(cosines)), float(max(deviations))


def measure_networks(name: str, rounds: int) -> list[Running]:
    backbone = random_backbone(name)
    taken = choose_runtime(backbone, "cpu").name
    candidates = networks(backbone)
    photos = [to_pixels(photo(640, 480, seed), SPEC, max_pixels=10**8) for seed in range(N_JUDGED)]
    pixels = np.stack(photos)
    expected = eager(backbone)(pixels)
    agreements = {each: agreement(backbone, network, expected, pixels) for each, network in candidates.items()}
    results = []
    for size in BATCH_SIZES:
        batch = pixels[:size]
        times = in_turns({each: partial(run, batch) for each, run in candidates.items()}, rounds)
        fastest = min(each.processor_s for each in times.values())
        results += [
            Running(
                backbone=name,
                batch_size=size,
                runtime=each,
                taken=each == taken,
                processor_ms=times[each].processor_s / size * 1000,
                images_per_s=size / times[each].wall_s,
                ratio=times[each].processor_s / fastest,
                cosine=agreements[each][0],
                deviation=agreements[each][1],
            )
            for each in candidates
        ]
    return results


def decoding_table(results: list[Decoding]) -> Table:
    columns = ("image", "decoder", "ms", "ratio", "mean drift", "max")
    table = Table(*columns, title="JPEG to the network's input, one image in one thread")
    for each in results:
        numbers = f"{each.processor_ms:.1f}", f"{each.ratio:.2f}", f"{each.mean_drift:.2f}", f"{each.max_drift:.0f}"
        table.add_row(f"{each.size}, {each.file_kb:.0f} kB", each.decoder, *numbers)
    return table


def running_table(results: list[Running], threads: int) -> Table:
    columns = ("backbone", "batch", "runtime", "ms of processor", "images/s", "ratio to fastest", "cosine", "deviation")
    table = Table(*columns, title=f"Network, per image, {threads} thread(s); Tandem takes the one in bold")
    for each in results:
        numbers = f"{each.processor_ms:.1f}", f"{each.images_per_s:.0f}", f"{each.ratio:.2f}"
        accuracy = f"{each.cosine:.5f}", f"{each.deviation:.1%}"
        row = each.backbone, str(each.batch_size), each.runtime, *numbers, *accuracy
        table.add_row(*row, style="bold" if each.taken else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # torchvision's decoder is on its way out, which is no news here
    torch.set_num_threads(arguments.threads)
    console = Console()
    decodings = measure_decoders(arguments.rounds)
    console.print(decoding_table(decodings))
    runnings = [each for name in arguments.backbones for each in measure_networks(name, arguments.rounds)]
    console.print(running_table(runnings, arguments.threads))
    if arguments.output:
        report = {
            **described("numpy", "pillow", "torch", "torchvision", "openvino", "onnxruntime"),
            "decoders": [asdict(each) for each in decodings],
            "runtimes": [asdict(each) for each in runnings],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
