"""What an operator watches: whether Tandem can work here, what work waits and ended, and the state of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import structlog

from backend.domain import Job, JobTally
from backend.errors import ConfigurationError, NotFound, StoreUnavailable
from backend.ports import Clock, Database, DiskSpace, EmbedderState, GpuMemory, Machine

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What is wrong with each thing that Tandem needs, in words fit for strangers; nothing when it is ready."""

    embedder: EmbedderState
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The jobs of all projects: those that wait or run now, and counts of those that ended."""

    now: datetime
    unfinished: tuple[Job, ...]
    tallies: tuple[JobTally, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The machine that was asked."""

    disk: DiskSpace
    gpus: tuple[GpuMemory, ...]
    embedder: EmbedderState


class Monitoring:
    """Looks at the database and at this machine; changes nothing."""

    def __init__(self, database: Database, machine: Machine, clock: Clock) -> None:
        self._database = database
        self._machine = machine
        self._clock = clock

    def readiness(self) -> Readiness:
        """Return whether requests can be served here, and if not, why; the log has the details.

        An embedding process that is starting is no reason to wait: events are taken and known images answered
        without it.
        """
        reasons = {}
        try:
            self._database.check_schema()
        except StoreUnavailable as error:
            log.warning("not ready", reason=str(error))
            reasons["database"] = "it cannot be used now"
        except (ConfigurationError, NotFound) as error:
            log.warning("not ready", reason=str(error))
            reasons["database"] = str(error)
        try:
            self._machine.check_writable()
        except (ConfigurationError, StoreUnavailable) as error:
            log.warning("not ready", reason=str(error))
            reasons["disk"] = "MODEL_DIR cannot be written to"
        embedder = self._machine.embedder()
        if embedder is EmbedderState.DOWN:
            log.warning("not ready", reason="the embedding process is down")
            reasons["embedder"] = "the embedding process is down: no image can be embedded until it is started again"
        return Readiness(embedder=embedder, reasons=reasons)

    def work(self) -> Work:
        """Return the jobs that wait or run, and counts of those that ended.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        with self._database.snapshot() as stores:
            return Work(
                now=self._clock.now(),
                unfinished=tuple(stores.jobs.unfinished()),
                tallies=tuple(stores.jobs.tallies()),
            )

    def machine(self) -> MachineState:
        """Return how this machine is."""
        return MachineState(
            disk=self._machine.disk(), gpus=tuple(self._machine.gpus()), embedder=self._machine.embedder()
        )
