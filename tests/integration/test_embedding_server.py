"""The embedding process and the way to it, over a real socket."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.embedders import EmbedderClient
from backend.embedding_server import EmbeddingServer
from backend.errors import EmbedderUnavailable
from backend.settings import Settings
from model.decoding import Decoders
from model.features import Embedded
from tests.e2e.loop import wait_for
from tests.hostile_images import obey_orders, telling


def draw(folder: Path, n: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(n)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddingServer]:
    folder = tmp_path_factory.mktemp("embedder")
    settings = Settings(model_dir=folder, backbone="resnet18", weights="none", device="cpu")  # type: ignore[call-arg]
    decoders = Decoders()
    yield EmbeddingServer(settings, LocalArtifacts(folder / "artifacts"), decoders)
    decoders.close()


@pytest.fixture(scope="module")
def address(server: EmbeddingServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    address = tmp_path_factory.mktemp("socket") / "embedder.sock"
    address.write_text("left behind by one that was killed")
    threading.Thread(target=server.serve, args=(address,), daemon=True).start()
    deadline_s = time.monotonic() + 20
    while not address.is_socket():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return address


@pytest.fixture
def client(address: Path) -> Iterator[EmbedderClient]:
    return EmbedderClient(address)


def test_it_says_which_backbone_it_runs(client: EmbedderClient, server: EmbeddingServer) -> None:
    assert client.base().digest == server.base_digest


def test_rows_come_in_the_order_of_the_files(client: EmbedderClient, server: EmbeddingServer, tmp_path: Path) -> None:
    paths = draw(tmp_path, 40)
    embedding = client.embed(paths)
    assert embedding.backbone_digest == server.base_digest
    assert embedding.problems == {}
    assert embedding.features.shape == (40, sum(embedding.block_sizes))
    assert embedding.features.dtype == np.float16
    backwards = client.embed(paths[::-1], urgent=True)
    np.testing.assert_allclose(
        backwards.features[::-1].astype(np.float32), embedding.features.astype(np.float32), atol=2e-2
    )


def test_a_file_that_cannot_be_read_costs_only_itself(client: EmbedderClient, tmp_path: Path) -> None:
    paths = draw(tmp_path, 36)
    expected = client.embed(paths).features
    paths[1].write_bytes(b"not an image")
    paths[34] = tmp_path / "nowhere.png"
    embedding = client.embed(paths)
    assert set(embedding.problems) == {1, 34}
    kept = [index for index in range(36) if index not in (1, 34)]
    np.testing.assert_allclose(embedding.features.astype(np.float32), expected[kept].astype(np.float32), atol=2e-2)


def test_nothing_asked_is_nothing_answered(client: EmbedderClient) -> None:
    embedding = client.embed([])
    assert embedding.features.shape == (0, sum(embedding.block_sizes))


def test_a_backbone_it_does_not_have_is_refused(client: EmbedderClient, tmp_path: Path) -> None:
    (path,) = draw(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(EmbedderUnavailable, match="backbones/ffff"):
            client.embed([path], backbone_digest="ffff")
    assert len(client.embed([path]).features) == 1


def test_a_full_disk_is_told(
    client: EmbedderClient, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that were fine-tuned elsewhere are fetched onto it."""
    (path,) = draw(tmp_path, 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server._artifacts, "fetch", refuse)
    with pytest.raises(EmbedderUnavailable, match="No space left"):
        client.embed([path], backbone_digest="ffff")


def test_many_threads_share_a_client(client: EmbedderClient, tmp_path: Path) -> None:
    paths = draw(tmp_path, 12)
    expected = client.embed(paths).features.astype(np.float32)
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda path: client.embed([path], urgent=True).features[0], paths))
    np.testing.assert_allclose(np.array(rows, dtype=np.float32), expected, atol=2e-2)


def test_a_failure_within_is_no_end_of_the_server(
    client: EmbedderClient, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = draw(tmp_path, 1)

    def explode(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(server._base, "embed", explode)
        with pytest.raises(EmbedderUnavailable, match="no room"):
            client.embed([path])
    assert len(client.embed([path]).features) == 1


def test_who_waits_no_longer_is_not_answered_later(
    client: EmbedderClient, server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = draw(tmp_path, 2)
    expected = client.embed([second]).features
    embed, go_on = server._base.embed, threading.Event()

    def wait_first(*arguments: Any, **options: Any) -> Embedded:
        assert go_on.wait(60)
        return embed(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(server._base, "embed", wait_first)
        with pytest.raises(EmbedderUnavailable, match=r"not answered within 0\.2 s"):
            client.embed([first], urgent=True, timeout_s=0.2)
        go_on.set()
        np.testing.assert_array_equal(client.embed([second], timeout_s=60).features, expected)


def test_an_image_that_crashes_its_decoder_costs_only_itself(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    obey_orders(monkeypatch, tmp_path)
    folder = tmp_path_factory.mktemp("embedder")
    settings = Settings(model_dir=folder, backbone="resnet18", weights="none", device="cpu")  # type: ignore[call-arg]
    decoders = Decoders()
    server = EmbeddingServer(settings, LocalArtifacts(folder / "artifacts"), decoders)
    threading.Thread(target=server.serve, args=(folder / "embedder.sock",), daemon=True).start()
    wait_for(lambda: (folder / "embedder.sock").is_socket(), "the socket")
    paths = draw(tmp_path, 20)
    paths[7].write_bytes(telling(paths[7].read_bytes(), "crash"))
    embedding = EmbedderClient(folder / "embedder.sock").embed(paths)
    assert embedding.problems == {7: "its decoding crashes (SIGSEGV)"}
    assert len(embedding.features) == 19
    decoders.close()


def test_no_embedder_is_said_at_once(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(EmbedderUnavailable, match="not up"):
        EmbedderClient(tmp_path / "nothing.sock").base()
    assert time.monotonic() - started_s < 5
