"""Checks of the machine that Tandem runs on: its folders, its database, its processes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta

from backend.domain import JobStatus
from backend.errors import ConfigurationError, EmbedderUnavailable, NotFound, StoreUnavailable, TandemError
from backend.ports import ArtifactStore, Clock, Database, Embedder, EmbedderState, HealthProbe, Machine
from backend.services.diagnosis.findings import Check, Finding, Installation, failed, ok, skipped, warning

GIB = 2**30
LEAST_FREE_BYTES = GIB
COMFORTABLE_FREE_BYTES = 5 * GIB
OVERDUE = timedelta(seconds=60)

START = "start it: tandem serve, or tandem worker beside a web process of its own"


class MachineChecks:
    """Looks at this machine; writes nothing but what is gone again."""

    def __init__(
        self,
        installation: Installation,
        database: Database,
        artifacts: ArtifactStore,
        machine: Machine,
        embedder: Embedder,
        load_backbone: Callable[[], str],
        health: HealthProbe,
        clock: Clock,
    ) -> None:
        """Look at nothing yet.

        ``load_backbone`` loads the backbone as the settings say, and returns what a user should know about it.
        """
        self._installation = installation
        self._database = database
        self._artifacts = artifacts
        self._machine = machine
        self._embedder = embedder
        self._load_backbone = load_backbone
        self._health = health
        self._clock = clock

    def run(self) -> Iterator[Finding]:
        """Make each check but the one of the worker."""
        yield self._model_dir()
        yield self._disk()
        yield self._schema()
        yield self._artifact_store()
        yield self._gpu()
        yield self._embedding_process()
        yield self._weights()
        yield self._web_server()

    def _model_dir(self) -> Finding:
        try:
            self._machine.check_writable()
        except ConfigurationError as error:
            return failed(
                Check.MODEL_DIR, str(error), "chown the folder to the user that runs Tandem, or set MODEL_DIR"
            )
        return ok(Check.MODEL_DIR, "can be written to")

    def _disk(self) -> Finding:
        try:
            disk = self._machine.disk()
        except OSError as error:
            return skipped(Check.DISK, f"cannot be asked ({error.strerror})")
        found = f"{disk.free_bytes / GIB:.1f} GiB free of {disk.total_bytes / GIB:.0f}"
        remedy = "make room, lower IMAGE_CACHE_BYTES, or move MODEL_DIR to a larger disk"
        if disk.free_bytes < LEAST_FREE_BYTES:
            return failed(Check.DISK, found, remedy)
        if disk.free_bytes < COMFORTABLE_FREE_BYTES:
            return warning(Check.DISK, found, remedy)
        return ok(Check.DISK, found)

    def _schema(self) -> Finding:
        try:
            self._database.check_schema()
        except StoreUnavailable as error:
            return failed(Check.DATABASE, str(error), "start the database, or correct DATABASE_URL")
        except NotFound as error:
            return warning(Check.DATABASE, str(error), "start Tandem: tandem serve")
        except ConfigurationError as error:
            return failed(
                Check.DATABASE, str(error), "start this version of Tandem once: it brings the schema up to date"
            )
        return ok(Check.DATABASE, "reachable, and its schema is the one of this version")

    def _artifact_store(self) -> Finding:
        """Publish something as small as can be, and take it away again."""
        key = f"doctor/{secrets.token_hex(8)}"
        try:
            with self._artifacts.scratch() as folder:
                (folder / "probe").write_bytes(b"tandem doctor")
                self._artifacts.publish(key, folder)
            self._artifacts.delete(key)
        except (TandemError, OSError) as error:
            remedy = "correct ARTIFACTS_URL or its credentials, or its folder's owner"
            return failed(Check.ARTIFACTS, str(error), remedy)
        return ok(Check.ARTIFACTS, "versions can be stored")

    def _gpu(self) -> Finding:
        gpus, device = self._machine.gpus(), self._installation.device
        if not gpus:
            if device == "cuda":
                remedy = "install the NVIDIA driver and hand the GPU to the container (--gpus), or set DEVICE=auto"
                return failed(Check.GPU, "DEVICE=cuda, but there is no GPU here that the driver knows", remedy)
            return ok(Check.GPU, "none here: the processor does the work")
        found = ", ".join(f"GPU {gpu.index} with {gpu.total_bytes / GIB:.0f} GiB" for gpu in gpus)
        if device == "cpu":
            return warning(Check.GPU, f"{found}, not used: DEVICE=cpu", "set DEVICE=auto")
        if self._installation.torch_version.endswith("+cpu"):
            remedy = "install PyTorch with CUDA: the image's variant cuda, or the wheels of the package index"
            check = failed if device == "cuda" else warning
            return check(Check.GPU, f"{found}, but this PyTorch is a build without CUDA", remedy)
        return ok(Check.GPU, found)

    def _embedding_process(self) -> Finding:
        match self._machine.embedder():
            case EmbedderState.UP:
                return ok(Check.EMBEDDER, "the embedding process answers")
            case EmbedderState.STARTING:
                return warning(Check.EMBEDDER, "the embedding process is starting", "wait for it: some seconds")
            case _:
                return warning(Check.EMBEDDER, "no embedding process runs on this machine", START)

    def _weights(self) -> Finding:
        """Ask the embedding process, which has them in memory; without one, load them here."""
        name = self._installation.backbone
        if self._installation.weights == "none":
            return warning(Check.WEIGHTS, f"{name} is untrained, as WEIGHTS=none asks for", "set WEIGHTS=auto")
        try:
            note = self._embedder.base().note
        except EmbedderUnavailable:
            try:
                note = self._load_backbone()
            except (TandemError, ValueError) as error:
                return failed(Check.WEIGHTS, str(error), "correct WEIGHTS or BACKBONE, and start Tandem again")
        if "untrained" in note:
            return failed(Check.WEIGHTS, note, "let Tandem reach the internet once, or give a file in WEIGHTS")
        return ok(Check.WEIGHTS, f"the weights of {name} are loaded" + (f"; {note}" if note else ""))

    def _web_server(self) -> Finding:
        problem = self._health.problem(self._installation.own_url)
        if problem:
            return warning(Check.WEB_SERVER, f"no Tandem answers at {self._installation.own_url}: {problem}", START)
        return ok(Check.WEB_SERVER, f"Tandem answers at {self._installation.own_url}")

    def worker(self) -> Finding:
        """Tell whether somebody takes the jobs that wait; the database has to be as it should."""
        with self._database.snapshot() as stores:
            unfinished = stores.jobs.unfinished()
        now = self._clock.now()
        running = [job for job in unfinished if job.status is JobStatus.RUNNING]
        lost = [job for job in running if job.lease_until and job.lease_until < now]
        overdue = [job for job in unfinished if job.status is JobStatus.QUEUED and job.run_after < now - OVERDUE]
        if lost or (overdue and not running):
            waits = max((now - job.run_after for job in [*lost, *overdue]), default=timedelta())
            return failed(
                Check.WORKER, f"no worker takes jobs: one has waited for {waits.total_seconds():.0f} s", START
            )
        if running:
            return ok(Check.WORKER, f"{len(running)} jobs run, {len(unfinished) - len(running)} wait")
        return ok(Check.WORKER, "no job waits")
