"""What a training leaves behind after every epoch, so that one that was killed goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import structlog
import torch
from safetensors import SafetensorError, safe_open

log = structlog.get_logger()

_FILE_NAME = "training-state.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """How one epoch went.

    ``phase`` is ``head`` for the linear head on frozen features (epoch 0) and ``network`` after that. Losses
    are in nats: the training loss with its weights, smoothing and random changes of the images, the validation
    loss the plain log loss of the averaged weights; ``validation_accuracy`` is the share of images, 0 to 1, that
    got exactly the right class or classes. Validation figures are ``None`` without validation images.
    """

    epoch: int
    phase: str
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None


def best_epoch(history: Sequence[EpochReport]) -> int:
    """Return the epoch of the network with the lowest validation loss, or the last one where none has any.

    The epoch of the head does not count: it left the network as it was, and what it then is worth is known without
    any fine-tuning.
    """
    losses = {
        report.validation_loss: report.epoch
        for report in reversed(history)
        if report.phase == "network" and report.validation_loss is not None
    }
    return losses[min(losses)] if losses else history[-1].epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Everything a training needs to go on after its last finished epoch.

    ``tensors`` hold the newest, the averaged and the best weights and the optimizer's, under names of the
    trainer's choice.
    """

    history: tuple[EpochReport, ...]
    n_steps: int
    seconds: float
    problems: Mapping[int, str]
    tensors: Mapping[str, torch.Tensor]


def fingerprint(*parts: object) -> str:
    """Return a SHA-256 over the ``repr`` of parts: what must be equal for a training to go on."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """Where one training keeps its state; nowhere without a folder.

    ``fingerprint`` names the training: the state of another one is not taken up.
    """

    folder: Path | None
    fingerprint: str

    def save(self, state: TrainingState) -> None:
        """Write the state in one step: whoever reads finds the old one or the new one, whole."""
        if self.folder is None:
            return
        described = {
            "fingerprint": self.fingerprint,
            "history": [asdict(report) for report in state.history],
            "n_steps": state.n_steps,
            "seconds": state.seconds,
            "problems": list(state.problems.items()),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{_FILE_NAME}.partial"
        safetensors.torch.save_file(tensors, temporary, metadata={"state": json.dumps(described)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.folder / _FILE_NAME)

    def load(self) -> TrainingState | None:
        """Return the state kept, or ``None`` when there is none of this very training."""
        if self.folder is None or not (self.folder / _FILE_NAME).exists():
            return None
        try:
            with safe_open(self.folder / _FILE_NAME, framework="pt") as file:
                described = json.loads(file.metadata()["state"])
                if described["fingerprint"] != self.fingerprint:
                    log.info("training state is of another training, starting anew", folder=str(self.folder))
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                return TrainingState(
                    history=tuple(EpochReport(**report) for report in described["history"]),
                    n_steps=described["n_steps"],
                    seconds=described["seconds"],
                    problems=dict(described["problems"]),
                    tensors=tensors,
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            log.warning("training state is unreadable, starting anew", folder=str(self.folder), reason=str(error))
            return None
