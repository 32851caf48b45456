"""Embedding for other processes: keeps torch and the backbones in memory.

Requests come over a Unix socket. They are cut into micro-batches that wait in one queue: urgent ones overtake
background ones there, and those waiting for the same backbone share a forward pass.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.adapters.embedders import (
    REQUESTS,
    ClassifyRequest,
    EmbedRequest,
    Reply,
    ReplyHeader,
    Request,
    SettingsRequest,
)
from backend.errors import EmbedderUnavailable, NotFound, StoreUnavailable
from backend.ports import ArtifactStore
from backend.promotion import backbone_key, classifier_key
from backend.settings import Settings
from model.backbones import CorruptBackbone, load_backbone, load_saved_backbone
from model.decoding import Decoders
from model.features import Embedded, Engine, choose_device

log = structlog.get_logger()

N_FINETUNED_ENGINES = 2


@dataclass(order=True, slots=True)
class MicroBatch:
    """Some images of one request; lower ``priority`` goes first, then who came first."""

    priority: int
    number: int
    digest: str = field(compare=False)
    paths: list[Path] = field(compare=False)
    ids: dict[str, str | int] = field(compare=False, default_factory=dict)
    result: Future[Embedded] = field(compare=False, default_factory=Future)


class EmbeddingServer:
    """Embeds for whoever connects to the socket."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore, decoders: Decoders) -> None:
        self._artifacts = artifacts
        self._decoders = decoders
        self._max_pixels = settings.max_image_pixels
        self._device = choose_device(settings.device)
        weights = settings.weights if settings.weights in ("auto", "none") else Path(settings.weights)
        backbone = load_backbone(settings.backbone, weights, n_views=settings.image_views)
        self.base_digest = backbone.digest
        self.note = backbone.note
        self._base = Engine(backbone, self._device)
        self.runtime_name = self._base.runtime.name
        self._finetuned: OrderedDict[str, Engine] = OrderedDict()
        self._loading = threading.Lock()
        self._waiting: queue.PriorityQueue[MicroBatch] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._batch_size = self._base.batch_size

    def serve(self, address: Path) -> None:
        """Answer requests until the process is told to end."""
        threading.Thread(target=self._work, name="engine", daemon=True).start()
        # beside the work: a storage out of reach must not keep anybody waiting
        threading.Thread(target=self._store_classifier, name="classifier", daemon=True).start()
        with contextlib.suppress(FileNotFoundError):
            address.unlink()
        with Listener(str(address), family="AF_UNIX", backlog=64) as listener:
            while True:
                connection = listener.accept()
                threading.Thread(target=self._answer_all, args=(connection,), daemon=True).start()

    def _store_classifier(self) -> None:
        """Store the pretrained classifier for those who learn without torch; they can do without."""
        classifier, key = self._base.backbone.classifier, classifier_key(self.base_digest)
        layers = classifier.as_arrays() if classifier else None
        try:
            if layers is None or self._artifacts.keys(key):
                return
            with self._artifacts.scratch() as folder:
                layers.write(folder)
                self._artifacts.publish(key, folder)
        except (StoreUnavailable, OSError) as error:
            log.warning("the pretrained classifier is not stored, versions learn without it", reason=str(error))

    def _answer_all(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):
            while True:
                request = REQUESTS.validate_json(connection.recv_bytes())
                features = connection.recv_bytes() if isinstance(request, ClassifyRequest) else b""
                reply = self._answer(request, features)
                connection.send_bytes(reply.header.model_dump_json().encode())
                connection.send_bytes(reply.rows.tobytes())

    def _answer(self, request: Request, features: bytes) -> Reply:
        try:
            if isinstance(request, SettingsRequest):
                return self._tell_settings(request.backbone_digest)
            if isinstance(request, ClassifyRequest):
                return self._classify(request, features)
            digest = request.backbone_digest or self.base_digest
            return self._embed(request, digest, self._engine(digest))
        except (NotFound, CorruptBackbone, EmbedderUnavailable, StoreUnavailable, OSError) as error:
            header = ReplyHeader(backbone_digest=self.base_digest, refusal=str(error))
            return Reply(header=header, rows=np.empty((0, 0), dtype=np.float16))

    def _tell_settings(self, digest: str) -> Reply:
        """Answer for what is loaded: to load a network takes seconds, and would drive out one that is needed."""
        engine = self._base if digest == self.base_digest else self._finetuned.get(digest)
        if engine is None:
            raise EmbedderUnavailable(f"the embedder does not run backbone {digest[:8]} at the moment")
        header = ReplyHeader(backbone_digest=digest, settings=engine.settings)
        return Reply(header=header, rows=np.empty((0, 0), dtype=np.float16))

    def _classify(self, request: ClassifyRequest, features: bytes) -> Reply:
        """Answer in the thread of whoever asks: a matrix product need not wait in the queue behind images."""
        backbone = self._base.backbone
        if request.backbone_digest != backbone.digest or backbone.classifier is None:
            raise EmbedderUnavailable(f"the embedder has no classifier for backbone {request.backbone_digest[:8]}")
        rows = np.frombuffer(features, dtype=np.float16).reshape(-1, backbone.n_features)
        try:
            probabilities = backbone.classifier.predict_groups(rows, request.groups)
        except KeyError as error:
            raise EmbedderUnavailable(f"the classifier of the embedder has no category {error}") from error
        return Reply(header=ReplyHeader(backbone_digest=backbone.digest, n_rows=len(rows)), rows=probabilities)

    def _embed(self, request: EmbedRequest, digest: str, engine: Engine) -> Reply:
        batches = [
            MicroBatch(
                priority=0 if request.urgent else 1,
                number=next(self._numbers),
                digest=digest,
                paths=[Path(path) for path in request.paths[start : start + self._batch_size]],
                ids=request.ids,
            )
            for start in range(0, len(request.paths), self._batch_size)
        ]
        for batch in batches:
            self._waiting.put(batch)
        features, problems = join(
            [batch.result.result() for batch in batches], self._batch_size, engine.backbone.n_features
        )
        classifier = None if request.paths else engine.backbone.classifier
        header = ReplyHeader(
            backbone_digest=digest,
            categories=classifier.categories if classifier else (),
            note="" if request.paths else engine.backbone.note,
            block_sizes=engine.backbone.block_sizes,
            n_rows=len(features),
            problems=problems,
        )
        return Reply(header=header, rows=features)

    def _engine(self, digest: str) -> Engine:
        if digest == self.base_digest:
            return self._base
        with self._loading:
            engine = self._finetuned.pop(digest, None)
            if engine is None:
                engine = Engine(load_saved_backbone(self._artifacts.fetch(backbone_key(digest))), self._device)
                while len(self._finetuned) >= N_FINETUNED_ENGINES:
                    self._finetuned.popitem(last=False)
            self._finetuned[digest] = engine
            return engine

    def _work(self) -> None:
        while True:
            batches = self._take()
            paths = [path for batch in batches for path in batch.paths]
            try:
                embedded = self._engine(batches[0].digest).embed(
                    paths, max_pixels=self._max_pixels, views=self._decoders.views
                )
            except Exception as error:  # whoever waits must be told, and the next request served
                for batch in batches:
                    log.exception("embedding failed", n_images=len(batch.paths), **batch.ids)
                    batch.result.set_exception(EmbedderUnavailable(f"embedding failed: {error!r}"))
                continue
            for batch, part in zip(batches, split(embedded, [len(batch.paths) for batch in batches]), strict=True):
                batch.result.set_result(part)

    def _take(self) -> list[MicroBatch]:
        """Take the first waiting micro-batch and, up to four batches' worth, those like it that wait behind it."""
        batches = [self._waiting.get()]
        while sum(len(batch.paths) for batch in batches) < 4 * self._batch_size:
            try:
                following = self._waiting.get_nowait()
            except queue.Empty:
                break
            if (following.digest, following.priority) != (batches[0].digest, batches[0].priority):
                self._waiting.put(following)
                break
            batches.append(following)
        return batches


def join(parts: Sequence[Embedded], batch_size: int, n_features: int) -> tuple[NDArray[np.float16], dict[int, str]]:
    """Put the results of one request's micro-batches together again."""
    rows = [part.features for part in parts] or [np.empty((0, n_features), dtype=np.float16)]
    problems = {
        number * batch_size + index: problem
        for number, part in enumerate(parts)
        for index, problem in part.problems.items()
    }
    return np.concatenate(rows), problems


def split(embedded: Embedded, sizes: Sequence[int]) -> list[Embedded]:
    """Cut the result of one forward pass into those of its micro-batches."""
    parts = []
    first_image = first_row = 0
    for size in sizes:
        problems = {
            index - first_image: problem
            for index, problem in embedded.problems.items()
            if first_image <= index < first_image + size
        }
        n_rows = size - len(problems)
        parts.append(Embedded(features=embedded.features[first_row : first_row + n_rows], problems=problems))
        first_image += size
        first_row += n_rows
    return parts
