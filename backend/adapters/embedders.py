"""The way to the embedding process: one Unix socket, one JSON message each way, and raw rows beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter

from backend.errors import EmbedderUnavailable
from backend.logs import present_ids
from backend.ports import EmbedderBackbone, Embedding
from model.reports import EmbeddingSettings

SETTINGS_TIMEOUT_S = 1.0
"""How long a version may wait for what is good to know but not needed."""


class EmbedRequest(BaseModel):
    """Embed these files; without paths, only say which backbone you run and what its classifier tells apart."""

    kind: Literal["embed"] = "embed"
    paths: list[str] = []
    backbone_digest: str | None = None
    urgent: bool = False
    ids: dict[str, str | int] = {}
    """What the lines of the log are about that this request gives rise to."""


class ClassifyRequest(BaseModel):
    """Say how probable each group of categories is; float16 rows of this backbone's features come after it."""

    kind: Literal["classify"] = "classify"
    groups: list[list[str]]
    backbone_digest: str


class SettingsRequest(BaseModel):
    """Say how you compute features of this backbone."""

    kind: Literal["settings"] = "settings"
    backbone_digest: str


class ReplyHeader(BaseModel):
    """What comes before the rows; ``refusal`` says why there are none."""

    backbone_digest: str
    categories: tuple[str, ...] = ()
    note: str = ""
    block_sizes: tuple[int, ...] = ()
    n_rows: int = 0
    problems: dict[int, str] = {}
    settings: EmbeddingSettings | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Features, float16 of shape (n_rows, sum of block sizes), or probabilities, float32 of (n_rows, n_groups + 1)."""

    header: ReplyHeader
    rows: NDArray[Any]


Request = EmbedRequest | ClassifyRequest | SettingsRequest
REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])


class EmbedderClient:
    """Embeds through the embedding process of this machine; each thread has its own connection."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._local = threading.local()

    def base(self) -> EmbedderBackbone:
        """Return the pretrained backbone that the settings name."""
        header, _ = self._ask(EmbedRequest())
        return EmbedderBackbone(digest=header.backbone_digest, categories=header.categories, note=header.note)

    def settings(self, backbone_digest: str) -> EmbeddingSettings:
        """Return how features of a backbone are computed now."""
        header, _ = self._ask(SettingsRequest(backbone_digest=backbone_digest), timeout_s=SETTINGS_TIMEOUT_S)
        if header.settings is None:
            raise EmbedderUnavailable("the embedding process does not say how it computes features")
        return header.settings

    def embed(
        self,
        paths: Sequence[Path],
        *,
        backbone_digest: str | None = None,
        urgent: bool = False,
        timeout_s: float | None = None,
    ) -> Embedding:
        """Embed image files."""
        request = EmbedRequest(
            paths=[str(path) for path in paths], backbone_digest=backbone_digest, urgent=urgent, ids=present_ids()
        )
        header, rows = self._ask(request, timeout_s=timeout_s)
        features = np.frombuffer(rows, dtype=np.float16).reshape(header.n_rows, sum(header.block_sizes))
        return Embedding(
            backbone_digest=header.backbone_digest,
            block_sizes=header.block_sizes,
            features=features,
            problems=header.problems,
        )

    def classify(
        self, features: NDArray[np.float16], groups: Sequence[Sequence[str]], *, backbone_digest: str
    ) -> NDArray[np.float32]:
        """Return how probable each group of categories is, and last the most probable category outside of them."""
        request = ClassifyRequest(groups=[list(group) for group in groups], backbone_digest=backbone_digest)
        header, rows = self._ask(request, features.tobytes())
        return np.frombuffer(rows, dtype=np.float32).reshape(header.n_rows, len(groups) + 1)

    def _ask(self, *messages: BaseModel | bytes, timeout_s: float | None = None) -> tuple[ReplyHeader, bytes]:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return _exchange(connection, messages, timeout_s)
            except (EOFError, OSError):
                # the embedder this thread knew has ended since; another may have taken its place
                connection.close()
        self._local.connection = None
        try:
            connection = Client(str(self._address), family="AF_UNIX")
            reply = _exchange(connection, messages, timeout_s)
        except (EOFError, OSError) as error:
            raise EmbedderUnavailable(
                "the embedding process is not up: it takes some seconds to start; is tandem serve running?"
            ) from error
        self._local.connection = connection
        return reply


def _exchange(
    connection: Connection, messages: Sequence[BaseModel | bytes], timeout_s: float | None
) -> tuple[ReplyHeader, bytes]:
    for message in messages:
        connection.send_bytes(message if isinstance(message, bytes) else message.model_dump_json().encode())
    if not connection.poll(timeout_s):
        connection.close()  # what it will still say is no answer to the next question
        raise EmbedderUnavailable(f"the embedding process has not answered within {timeout_s:.1f} s")
    header = ReplyHeader.model_validate_json(connection.recv_bytes())
    rows = connection.recv_bytes()
    if header.refusal:
        raise EmbedderUnavailable(header.refusal)
    return header, rows
