"""Fine-tuning on all GPUs of this machine, with one process for each.

Networks travel as safetensors in a private folder, through which the processes also find each other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from model.backbones import Backbone, load_saved_backbone, save_backbone
from model.finetuning import FineTuned, TrainingConfig, TrainingDiverged, fit
from model.ranks import run_ranks
from model.training import OnProgress

MIN_IMAGES_PER_DEVICE = 8
"""Of one batch; with fewer a GPU waits for its next kernel most of the time, and another GPU would not help."""


def fit_on_all_devices(
    backbone: Backbone,
    sources: Sequence[Path],
    targets: NDArray[np.int64] | NDArray[np.bool_],
    *,
    class_count: int,
    multiple: bool,
    train: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    device: str,
    config: TrainingConfig,
    max_pixels: int,
    n_threads: int | None,
    on_progress: OnProgress,
    resume_folder: Path | None = None,
    n_processes: int | None = None,
) -> FineTuned:
    """Fine-tune as ``fit`` does, with ``device`` ``cuda`` on as many GPUs as the batches are large enough for.

    Several processes learn what one would, up to rounding; each decodes its own share of every batch.

    Args:
        backbone: see ``fit``, as for all that is not named here.
        n_threads: CPU threads for all processes together; ``None`` for all there are.
        on_progress: called in this process; what it raises ends all others.
        n_processes: how many processes to train with; ``None`` for one per GPU.

    Raises:
        TrainingDiverged: see ``fit``.
        ValueError: see ``fit``.
        RankFailed: a process died or failed; with the same ``resume_folder`` the next call goes on after the last
            epoch.
    """
    n_ranks = n_processes or _useful_devices(device, config.batch_size)
    if n_ranks > 1 or device != "cpu":
        # torch's own choice is one thread per core, but what decodes for a GPU may use both halves of a core
        n_threads = max(1, (n_threads or os.cpu_count() or 1) // n_ranks)
    fit_backbone = partial(
        fit,
        sources=sources,
        targets=targets,
        class_count=class_count,
        multiple=multiple,
        train=train,
        validation=validation,
        device=device,
        config=config,
        max_pixels=max_pixels,
        n_threads=n_threads,
        resume_folder=resume_folder,
    )
    if n_ranks == 1:
        return fit_backbone(backbone, on_progress=on_progress)
    with _scratch(resume_folder) as name:
        folder, backend = Path(name), "gloo" if device == "cpu" else "nccl"
        _save(backbone, _start_folder(folder))
        works = [partial(_fit_share, fit_backbone, folder, backend, rank, n_ranks) for rank in range(n_ranks)]
        rest = run_ranks(works, on_progress=on_progress, expected=(TrainingDiverged, ValueError))
        return FineTuned(backbone=load_saved_backbone(_result_folder(folder)), **rest)


def _useful_devices(device: str, batch_size: int) -> int:
    if device != "cuda":
        return 1
    return max(1, min(torch.cuda.device_count(), batch_size // MIN_IMAGES_PER_DEVICE))


def _fit_share(
    fit_backbone: Callable[..., FineTuned],
    folder: Path,
    backend: str,
    rank: int,
    n_ranks: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train as one rank; return the fields of the result but for the backbone, which rank 0 leaves in the folder."""
    meeting = (folder / "meeting").as_uri()
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=n_ranks)
    fine_tuned = fit_backbone(load_saved_backbone(_start_folder(folder)), on_progress=on_progress)
    if rank == 0:
        _save(fine_tuned.backbone, _result_folder(folder))
    return {each.name: getattr(fine_tuned, each.name) for each in fields(fine_tuned) if each.name != "backbone"}


def _scratch(resume_folder: Path | None) -> AbstractContextManager[str]:
    """Make a folder that goes away; what a power cut leaves of it goes away with the resume folder."""
    if resume_folder is not None:
        resume_folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="ranks-", dir=resume_folder)


def _start_folder(folder: Path) -> Path:
    return folder / "start"


def _result_folder(folder: Path) -> Path:
    return folder / "result"


def _save(backbone: Backbone, folder: Path) -> None:
    folder.mkdir()
    save_backbone(backbone, folder)
