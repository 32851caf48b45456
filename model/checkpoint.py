"""A learned head as a folder: safetensors for arrays, JSON for the rest, a checksum over every file.

`model.json` holds the SHA-256 of every other file of the folder, and that of its own `content`, which is the
checkpoint's digest: the same labels, images, settings and libraries give the same one. What may differ from run to run
stands beside the content: how long it took, and what the embedding process, which may be out of reach, tells of itself.
Light enough for the web process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.head import Head
from model.inference import Predictor
from model.learned import Learned, OutOfFold
from model.opinion import Opinion, layer_arrays, layers_from
from model.reports import EmbeddingSettings, Setting, VersionReport, read_conformal, read_version_report

FORMAT = 1
MODEL_FILE = "model.json"
HEAD_FILE = "head.safetensors"
OPINION_FILE = "opinion.safetensors"
OUT_OF_FOLD_FILE = "out_of_fold.safetensors"
OUT_OF_FOLD_DIGESTS_FILE = "out_of_fold.json"
LIBRARIES = (
    "numpy", "openvino", "pillow", "safetensors", "scikit-learn", "scipy", "tandem-label-studio", "torch", "torchvision"
)  # fmt: skip

Built = TypeVar("Built")


class CorruptCheckpoint(Exception):
    """A checkpoint that is incomplete, was altered, or was never one."""


def save_checkpoint(
    folder: Path,
    learned: Learned,
    *,
    backbone_digest: str,
    snapshot: str,
    embedding: EmbeddingSettings | None = None,
    finetuning: Mapping[str, Setting] | None = None,
    finetuning_s: float | None = None,
    embedding_s: float | None = None,
) -> str:
    """Write what was learned into an existing folder, durably, and return the checkpoint's digest in hex.

    Files that are in the folder already become part of the checkpoint: altering them corrupts it. Equal contents
    give equal digests.

    Args:
        folder: where to write.
        learned: what to write.
        backbone_digest: whose features the head works on.
        snapshot: SHA-256, in hex, of the labels.
        embedding: how features of that backbone are computed, where somebody can tell.
        finetuning: how the backbone was trained, where it was trained for this version.
        finetuning_s: how long that took, in seconds.
        embedding_s: how long it then took to embed what the head was learned from, in seconds.
    """
    predictor = learned.predictor
    head = predictor.head
    _write(folder / HEAD_FILE, save({"centre": head.centre, "weight": head.weight, "bias": head.bias}))
    if predictor.opinion is not None:
        _write(folder / OPINION_FILE, save(layer_arrays(predictor.opinion.layers)))
    _write(folder / OUT_OF_FOLD_FILE, save({"probabilities": learned.out_of_fold.probabilities}))
    _write(folder / OUT_OF_FOLD_DIGESTS_FILE, json.dumps(learned.out_of_fold.digests).encode())
    content = {
        "format": FORMAT,
        "snapshot": snapshot,
        "pool": None if learned.pool is None else asdict(learned.pool),
        "libraries": _libraries(),
        "class_names": predictor.class_names,
        "multiple": predictor.multiple,
        "temperature": predictor.temperature,
        "opinion": None if predictor.opinion is None else {"groups": predictor.opinion.groups},
        "opinion_share": predictor.opinion_share,
        "thresholds": predictor.thresholds,
        "conformal": asdict(predictor.conformal),
        "conformal_report": asdict(learned.conformal),
        "block_sizes": head.block_sizes,
        "backbone_digest": backbone_digest,
        "finetuning": None if finetuning is None else dict(finetuning),
        "seed": learned.seed,
        "candidates": learned.candidates,
        "method": learned.method,
        "uncalibrated": asdict(learned.uncalibrated),
        "calibrated": asdict(learned.calibrated),
        "files": {path.name: _sha256(path.read_bytes()) for path in _other_files(folder)},
    }
    digest = _sha256(_canonical(content))
    timings_s = {"learn": learned.seconds, "finetune": finetuning_s, "embed": embedding_s}
    wrapped = {
        "sha256": digest,
        "content": content,
        "embedding": None if embedding is None else asdict(embedding),
        "timings_s": {step: seconds for step, seconds in timings_s.items() if seconds is not None},
    }
    _write(folder / MODEL_FILE, json.dumps(wrapped, indent=1, allow_nan=False).encode())
    _sync(folder)
    return digest


def load_predictor(folder: Path) -> Predictor:
    """Return the predictor of a checkpoint.

    Raises:
        CorruptCheckpoint: a file is missing, altered or not what it should be.
    """
    return _build(folder, _predictor)


def load_out_of_fold(folder: Path) -> OutOfFold:
    """Return the out-of-fold predictions of a checkpoint.

    Raises:
        CorruptCheckpoint: a file is missing, altered or not what it should be.
    """
    return _build(folder, _out_of_fold)


def load_version_report(folder: Path) -> VersionReport:
    """Return the report of a checkpoint.

    Raises:
        CorruptCheckpoint: a file is missing, altered or not what it should be.
    """
    return _build(folder, _version_report)


def _build(folder: Path, build: Callable[[Path, dict[str, Any]], Built]) -> Built:
    try:
        return build(folder, _verified_content(folder))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"the checkpoint in {folder.name} cannot be read: {error!r}") from error


def _verified_content(folder: Path) -> dict[str, Any]:
    wrapped = json.loads((folder / MODEL_FILE).read_bytes())
    content: dict[str, Any] = wrapped["content"]
    if _sha256(_canonical(content)) != wrapped["sha256"]:
        raise CorruptCheckpoint(f"{MODEL_FILE} in {folder.name} was altered after it was saved")
    if content["format"] != FORMAT:
        raise CorruptCheckpoint(f"{folder.name} has checkpoint format {content['format']}; this version reads {FORMAT}")
    for name, expected in content["files"].items():
        if _sha256((folder / name).read_bytes()) != expected:
            raise CorruptCheckpoint(f"{name} in {folder.name} was altered after it was saved")
    return content


def _predictor(folder: Path, content: dict[str, Any]) -> Predictor:
    arrays = load((folder / HEAD_FILE).read_bytes())
    for name in ("centre", "weight", "bias"):
        _check_array(name, arrays[name])
    thresholds = content["thresholds"]
    return Predictor(
        class_names=tuple(str(name) for name in content["class_names"]),
        multiple=bool(content["multiple"]),
        head=Head(
            block_sizes=tuple(int(size) for size in content["block_sizes"]),
            centre=arrays["centre"],
            weight=arrays["weight"],
            bias=arrays["bias"],
        ),
        temperature=float(content["temperature"]),
        thresholds=None if thresholds is None else tuple(float(threshold) for threshold in thresholds),
        conformal=read_conformal(content["conformal"]),
        opinion=_opinion(folder, content),
        opinion_share=float(content.get("opinion_share", 0.0)),
        backbone_digest=str(content["backbone_digest"]),
    )


def _opinion(folder: Path, content: dict[str, Any]) -> Opinion | None:
    described = content.get("opinion")  # a checkpoint of before there were any has none
    if described is None:
        return None
    arrays = load((folder / OPINION_FILE).read_bytes())
    for name, array in arrays.items():
        _check_array(name, array)
    groups = tuple(tuple(int(column) for column in group) for group in described["groups"])
    return Opinion(layers=layers_from(arrays), groups=groups)


def _out_of_fold(folder: Path, content: dict[str, Any]) -> OutOfFold:
    probabilities = load((folder / OUT_OF_FOLD_FILE).read_bytes())["probabilities"]
    digests = tuple(str(digest) for digest in json.loads((folder / OUT_OF_FOLD_DIGESTS_FILE).read_bytes()))
    _check_array("probabilities", probabilities)
    if probabilities.shape != (len(digests), len(content["class_names"])):
        raise CorruptCheckpoint(
            f"out-of-fold probabilities in {folder.name} have shape {probabilities.shape} for {len(digests)} images"
        )
    return OutOfFold(digests=digests, probabilities=probabilities)


def _version_report(folder: Path, content: dict[str, Any]) -> VersionReport:
    beside = json.loads((folder / MODEL_FILE).read_bytes())
    # a checkpoint of before it was told has no embedding
    return read_version_report(content, embedding=beside.get("embedding"), timings_s=beside["timings_s"])


def _check_array(name: str, array: np.ndarray[Any, Any]) -> None:
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise CorruptCheckpoint(f"{name} of type {array.dtype} must be finite numbers of type float32")


@cache
def _libraries() -> dict[str, str]:
    """Return the versions of what computes features and heads, as far as it is installed; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _other_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MODEL_FILE)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the folder's entries durable too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
