"""The way to the embedding process: one Unix socket, one JSON message each way, and the raw rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from backend.errors import EmbedderUnavailable
from backend.ports import Embedding


class EmbedRequest(BaseModel):
    """Embed these files; without paths, only say which backbone you run."""

    paths: list[str] = []
    backbone_digest: str | None = None
    urgent: bool = False


class ReplyHeader(BaseModel):
    """What comes before the rows; ``refusal`` says why there are none."""

    backbone_digest: str
    block_sizes: tuple[int, ...] = ()
    n_rows: int = 0
    problems: dict[int, str] = {}
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedReply:
    """Features of shape (n_rows, sum of block sizes)."""

    header: ReplyHeader
    features: NDArray[np.float16]


class EmbedderClient:
    """Embeds through the embedding process of this machine; each thread has its own connection."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._local = threading.local()

    def base_digest(self) -> str:
        """Return the digest of the pretrained backbone that the settings name."""
        return self._ask(EmbedRequest()).header.backbone_digest

    def embed(self, paths: Sequence[Path], *, backbone_digest: str | None = None, urgent: bool = False) -> Embedding:
        """Embed image files."""
        request = EmbedRequest(paths=[str(path) for path in paths], backbone_digest=backbone_digest, urgent=urgent)
        reply = self._ask(request)
        return Embedding(
            backbone_digest=reply.header.backbone_digest,
            block_sizes=reply.header.block_sizes,
            features=reply.features,
            problems=reply.header.problems,
        )

    def _ask(self, request: EmbedRequest) -> EmbedReply:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return _exchange(connection, request)
            except (EOFError, ConnectionError):
                # the embedder this thread knew has ended since; another may have taken its place
                connection.close()
        self._local.connection = None
        try:
            connection = Client(str(self._address), family="AF_UNIX")
            reply = _exchange(connection, request)
        except (FileNotFoundError, EOFError, ConnectionError) as error:
            raise EmbedderUnavailable(
                "the embedding process is not up: it takes some seconds to start; is tandem serve running?"
            ) from error
        self._local.connection = connection
        return reply


def _exchange(connection: Connection, request: EmbedRequest) -> EmbedReply:
    connection.send_bytes(request.model_dump_json().encode())
    header = ReplyHeader.model_validate_json(connection.recv_bytes())
    rows = np.frombuffer(connection.recv_bytes(), dtype=np.float16)
    if header.refusal:
        raise EmbedderUnavailable(header.refusal)
    return EmbedReply(header=header, features=rows.reshape(header.n_rows, sum(header.block_sizes)))
