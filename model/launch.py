"""Fine-tuning on all GPUs of this machine: one process for each, started and watched from here.

Each of them, called a rank, is a fresh interpreter: CUDA does not survive a fork. Networks travel as safetensors in
a private folder, through which the ranks also find each other. What ends one rank ends all of them, and none
outlives the process that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import distributed

from model.backbones import Backbone, load_saved_backbone, save_backbone
from model.finetuning import FineTuned, TrainingConfig, TrainingDiverged, fit
from model.training import OnProgress

log = structlog.get_logger()

MIN_IMAGES_PER_DEVICE = 8
"""Of one batch; with fewer a GPU waits for its next kernel most of the time, and another GPU would not help."""


class RankFailed(Exception):
    """A process of a training died, or failed for a reason that is not the training's."""


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
        runs = [partial(_run_rank, fit_backbone, folder, backend, n_ranks, rank) for rank in range(n_ranks)]
        finished = _run_ranks(runs, on_progress)
        return FineTuned(backbone=load_saved_backbone(_result_folder(folder)), **finished.rest)


def _useful_devices(device: str, batch_size: int) -> int:
    if device != "cuda":
        return 1
    return max(1, min(torch.cuda.device_count(), batch_size // MIN_IMAGES_PER_DEVICE))


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


# --- what ranks say ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _LogEntry:
    """A line for the log, which is set up in the process that started the ranks only."""

    level: str
    event: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """A ``FineTuned`` without its backbone, which lies in the result folder."""

    rest: dict[str, Any]


_Message = _Progress | _LogEntry | _Finished | TrainingDiverged | ValueError | RankFailed


# --- the process that watches ------------------------------------------------------------------------------


def _run_ranks(runs: Sequence[Callable[[Connection], None]], on_progress: OnProgress) -> _Finished:
    """Run each of ``runs`` in a process of its own until one has finished or anything fails; then end all."""
    spawning = multiprocessing.get_context("spawn")
    ranks: dict[Connection, SpawnProcess] = {}
    try:
        for rank, run in enumerate(runs):
            ear, mouth = spawning.Pipe(duplex=False)
            process = spawning.Process(target=run, args=(mouth,), name=f"rank {rank}", daemon=True)
            process.start()
            mouth.close()  # only the rank holds it now, so the pipe ends with the rank
            ranks[ear] = process
        return _listen(ranks, on_progress)
    finally:
        for process in ranks.values():
            process.kill()
        for ear, process in ranks.items():
            process.join()
            ear.close()


def _listen(ranks: Mapping[Connection, SpawnProcess], on_progress: OnProgress) -> _Finished:
    """Return when a rank has finished.

    Raises:
        Exception: what ``on_progress`` raised, or the reason for which a rank failed.
    """
    while True:
        for ear in wait(list(ranks)):
            match _next_message(ear):  # type: ignore[arg-type]
                case _Progress(done=done, total=total):
                    on_progress(done, total)
                case _LogEntry(level=level, event=event):
                    getattr(log, level)(**event)
                case _Finished() as finished:
                    return finished
                case Exception() as error:
                    # when one dies the others fail for lack of it, and may be heard first
                    raise next(_deaths(ranks.values()), error)
                case None:
                    ranks[ear].join()  # type: ignore[index]
                    raise next(_deaths(ranks.values()))


def _next_message(ear: Connection) -> _Message | None:
    try:
        message: _Message = ear.recv()
        return message
    except (EOFError, OSError):  # the second in the middle of a message
        return None


def _deaths(processes: Collection[SpawnProcess]) -> Iterator[RankFailed]:
    for process in processes:
        code = process.exitcode
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            remedy = "the system's log may say that memory was short" if code == -signal.SIGKILL else "see the log"
            yield RankFailed(f"{process.name} of {len(processes)} training processes ended by {how}: {remedy}")


# --- a rank ------------------------------------------------------------------------------------------------


def _run_rank(
    fit_backbone: Callable[..., FineTuned], folder: Path, backend: str, n_ranks: int, rank: int, mouth: Connection
) -> None:
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    speaking = threading.Lock()

    def say(message: _Message) -> None:
        with speaking:
            mouth.send(message)

    def say_for_log(_: object, level: str, event: MutableMapping[str, Any]) -> NoReturn:
        say(_LogEntry(level=level, event={**event, "rank": rank}))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.format_exc_info, say_for_log])
    try:
        distributed.init_process_group(
            backend,
            init_method=(folder / "meeting").as_uri(),
            rank=rank,
            world_size=n_ranks,
        )
        start = load_saved_backbone(_start_folder(folder))
        fine_tuned = fit_backbone(start, on_progress=lambda done, total: say(_Progress(done=done, total=total)))
        if rank == 0:
            _save(fine_tuned.backbone, _result_folder(folder))
            rest = {each.name: getattr(fine_tuned, each.name) for each in fields(fine_tuned) if each.name != "backbone"}
            say(_Finished(rest=rest))
    except (TrainingDiverged, ValueError) as error:
        say(error)
    except Exception as error:  # whatever it is, the process that watches has to know
        log.exception("training process failed")
        say(RankFailed(f"rank {rank} of {n_ranks} training processes failed: {type(error).__name__}: {error}"))
    # a rank that leaves takes the others' connections with it: the end of all is for the parent to say
    _end_with_parent()


def _end_with_parent() -> None:
    """Wait for the parent's end, and end this process at once, even if it waits for another rank for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
