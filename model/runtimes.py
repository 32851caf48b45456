"""What runs a backbone's network: torch, or on a processor OpenVINO where it is installed (extra ``openvino``).

OpenVINO needs a fraction of torch's processor time here, and its threads do not spin while they wait for each other;
``benchmarks/embedding.py`` measures both. In bfloat16 features differ from float32 by one to four per cent of their
spread between images: too little to change what a head says, so that rows of several runtimes may stand side by side
under one backbone digest.

``torch.compile`` is left out on purpose: on a processor it takes most of a minute for each batch size, at every start
of a process, and stays slower than OpenVINO; on a GPU nobody measured it. So is ONNX Runtime: it has no bfloat16 for
processors, and in float32 it is about as fast as OpenVINO.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import threading
import warnings
from typing import Any, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import nn

from model.backbones import Backbone
from model.blocks import FeatureNetwork
from model.precision import bfloat16_pays
from model.transforms import InputSpec, normalise

_log = structlog.get_logger()

_LARGEST_DEVIATION = 0.25  # bfloat16 alone makes some networks deviate by a tenth


class Runtime(Protocol):
    """A network ready to run; may be called from several threads.

    ``name`` tells in logs what runs, and in which precision.
    """

    name: str

    def __call__(self, pixels: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        """Return the features (n, n_features) of images (n, height, width, 3) as ``to_pixels`` makes them.

        They may lie on the runtime's device already.
        """


class WrongConversion(Exception):
    """A converted network that computes something else than the original."""


def choose_runtime(backbone: Backbone, device: str) -> Runtime:
    """Return the fastest runtime there is here for a backbone on a device, ``cpu`` or ``cuda``."""
    bfloat16 = bfloat16_pays(device)
    if device == "cpu" and importlib.util.find_spec("openvino"):
        try:
            return OpenvinoRuntime(backbone, bfloat16=bfloat16)
        except Exception as error:  # noqa: BLE001 - whatever a conversion fails with, torch runs the network
            _log.warning("OpenVINO cannot run this network, torch does", backbone=backbone.name, error=repr(error))
    return TorchRuntime(backbone, device, bfloat16=bfloat16)


class TorchRuntime:
    """torch on ``cpu`` or ``cuda``, with channels-last memory."""

    def __init__(self, backbone: Backbone, device: str = "cpu", *, bfloat16: bool) -> None:
        self.name = f"torch {'bfloat16' if bfloat16 else 'float32'}"
        self._spec = backbone.input_spec
        self._device = device
        self._bfloat16 = bfloat16
        self._network = _prepared(backbone.network, device, bfloat16=bfloat16)

    def __call__(self, pixels: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        """Return the features of images; the copy to a GPU is asynchronous when they lie in pinned memory."""
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            features: NDArray[np.float32] = self._network(normalise(pixels, self._spec, self._device)).cpu().numpy()
        return features


class OpenvinoRuntime:
    """OpenVINO on the processor.

    Each thread runs images of its own, one at a time: for OpenVINO larger batches are not faster, and several threads
    on one image would wait for each other.

    Raises:
        ImportError: OpenVINO is not installed.
        WrongConversion: features of the converted network are not those of the original.
    """

    def __init__(self, backbone: Backbone, *, bfloat16: bool) -> None:
        openvino = _import_openvino()
        size = backbone.input_spec.crop_size
        probe = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        original = FromPixels(backbone.network, backbone.input_spec)
        n_threads = torch.get_num_threads()
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": n_threads,
            "INFERENCE_NUM_THREADS": n_threads,
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            # the cores are shared with other processes, which pinned threads could not evade
            "ENABLE_CPU_PINNING": False,
        }
        compiled = openvino.compile_model(_converted(original, probe), "CPU", options)
        self.name = f"OpenVINO {'bfloat16' if bfloat16 else 'float32'}"
        self._n_features = backbone.n_features
        self._one_caller = threading.Lock()
        self._requests = openvino.AsyncInferQueue(compiled, n_threads)
        with torch.inference_mode():
            _verify(self(probe), original(torch.from_numpy(probe)).numpy(), backbone.block_sizes)

    def __call__(self, pixels: NDArray[np.uint8] | torch.Tensor) -> NDArray[np.float32]:
        """Return the features of images."""
        images = np.asarray(pixels)
        features = np.empty((len(images), self._n_features), np.float32)

        def keep(request: Any, row: int) -> None:
            features[row] = request.get_output_tensor().data[0]

        with self._one_caller:
            self._requests.set_callback(keep)
            for row in range(len(images)):
                self._requests.start_async(images[row : row + 1], row, share_inputs=True)
            self._requests.wait_all()
        return features


def _prepared(network: FeatureNetwork, device: str, *, bfloat16: bool) -> FeatureNetwork:
    """Return a copy for inference.

    Under autocast the weights of convolutions and linear layers are cast at every call: here once for all. The
    others stay in float32, where autocast wants them.
    """
    prepared = copy.deepcopy(network).to(device).to(memory_format=torch.channels_last)
    prepared.requires_grad_(False).eval()
    if bfloat16:
        for module in prepared.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    return prepared


class FromPixels(nn.Module):
    """Pixels (n, height, width, 3) to features: normalisation as part of the network."""

    def __init__(self, network: FeatureNetwork, spec: InputSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (n, n_features)."""
        return self.network(normalise(pixels, self.spec))  # type: ignore[no-any-return]


def _import_openvino() -> Any:
    # It would report its import and each conversion to a server; without this package it reports nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _converted(network: nn.Module, probe: NDArray[np.uint8]) -> Any:
    """Return a network as a model of OpenVINO, for one image at a time."""
    openvino = _import_openvino()
    example = torch.from_numpy(probe)
    with torch.inference_mode(), warnings.catch_warnings():
        # torch wants export to be used instead, which takes ten times as long
        warnings.simplefilter("ignore", FutureWarning)
        # shapes and sizes become constants, which is right: the input's never changes
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        shape = openvino.PartialShape(list(probe.shape))
        return openvino.convert_model(traced, example_input=example, input=[(shape, openvino.Type.u8)])


def _verify(features: NDArray[np.float32], expected: NDArray[np.float32], block_sizes: tuple[int, ...]) -> None:
    """Compare blocks of features by the norm of their difference.

    Raises:
        WrongConversion: it is more than a quarter of the expected one's.
    """
    ends = np.cumsum(block_sizes)[:-1]
    for number, (block, right) in enumerate(zip(np.split(features, ends, 1), np.split(expected, ends, 1), strict=True)):
        deviation = float(np.linalg.norm(block - right) / max(np.linalg.norm(right), np.finfo(np.float32).tiny))
        if not deviation <= _LARGEST_DEVIATION:
            raise WrongConversion(f"features of block {number} deviate by {deviation:.0%}")
