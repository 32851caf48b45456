"""The machine this process runs on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware and in UTC."""


class EmbedderState(StrEnum):
    """Whether there is an embedding process on this machine, and how far it is."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """Room on a disk."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one GPU, whoever uses it."""

    index: int
    used_bytes: int
    total_bytes: int


class Machine(Protocol):
    """The machine this process runs on."""

    def check_writable(self) -> None:
        """Make sure that the folder of all local state can be written to.

        Raises:
            ConfigurationError: it cannot.
        """

    def disk(self) -> DiskSpace:
        """Return the room on the disk of all local state."""

    def gpus(self) -> list[GpuMemory]:
        """Return the memory of each GPU."""

    def embedder(self) -> EmbedderState:
        """Return how the embedding process is."""
