"""What is expected of whatever embeds: of the embedding process with a real network, and of the fake in unit tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.embedders import EmbedderClient
from backend.embedding_server import EmbeddingServer
from backend.errors import EmbedderUnavailable
from backend.ports import Embedder
from backend.promotion import classifier_key
from backend.settings import Settings
from model.decoding import Decoders
from model.opinion import PretrainedLayers
from tests.e2e.loop import wait_for
from tests.fakes import FakeEmbedder


@dataclass(frozen=True)
class Embedding:
    """An embedder, and what writes an image that it can read."""

    embedder: Embedder
    draw: Callable[[Path, int], None]


def draw_pixels(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="png")


def draw_words(path: Path, number: int) -> None:
    path.write_bytes(b"%s %d" % ((b"cat", b"dog", b"fly")[number % 3], number))


def start_server(folder: Path, decoders: Decoders) -> EmbedderClient:
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), folder / "weights.safetensors")
    settings = Settings(
        model_dir=folder, backbone="resnet18", weights=str(folder / "weights.safetensors"), device="cpu"
    )  # type: ignore[call-arg]
    server = EmbeddingServer(settings, LocalArtifacts(folder / "artifacts"), decoders)
    address = folder / "embedder.sock"
    threading.Thread(target=server.serve, args=(address,), daemon=True).start()
    deadline_s = time.monotonic() + 20
    while not address.is_socket():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return EmbedderClient(address)


@pytest.fixture(scope="module", params=["embedding process", "fake"])
def embedding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedding]:
    if request.param == "fake":
        yield Embedding(FakeEmbedder(categories=("bird", "cat", "dog", "fly")), draw_words)
        return
    decoders = Decoders()
    yield Embedding(start_server(tmp_path_factory.mktemp("embedder"), decoders), draw_pixels)
    decoders.close()


@pytest.fixture
def paths(embedding: Embedding, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(paths):
        embedding.draw(path, number)
    return paths


def test_each_image_has_a_row_of_the_base_backbone(embedding: Embedding, paths: list[Path]) -> None:
    base = embedding.embedder.base()
    embedded = embedding.embedder.embed(paths)
    assert embedded.backbone_digest == base.digest
    assert embedded.features.shape == (6, sum(embedded.block_sizes))
    assert embedded.problems == {}
    assert embedding.embedder.embed([], backbone_digest=base.digest).features.shape == (0, sum(embedded.block_sizes))


def test_it_tells_how_it_computes_what_it_runs(embedding: Embedding) -> None:
    settings = embedding.embedder.settings(embedding.embedder.base().digest)
    assert (settings.backbone, settings.device) == ("resnet18", "cpu")
    assert settings.image_views >= 1
    assert settings.runtime
    with pytest.raises(EmbedderUnavailable, match="ffff"):
        embedding.embedder.settings("ffff")


def test_an_image_that_cannot_be_read_costs_only_itself(embedding: Embedding, paths: list[Path]) -> None:
    paths[2].write_bytes(b"broken")
    embedded = embedding.embedder.embed(paths)
    assert set(embedded.problems) == {2}
    assert len(embedded.features) == 5


def test_groups_share_the_probability_of_all_categories(embedding: Embedding, paths: list[Path]) -> None:
    base = embedding.embedder.base()
    features = embedding.embedder.embed(paths).features
    one_by_one = embedding.embedder.classify(
        features, [[category] for category in base.categories], backbone_digest=base.digest
    )
    assert one_by_one.shape == (6, len(base.categories) + 1)
    assert one_by_one.dtype == np.float32
    np.testing.assert_allclose(one_by_one[:, :-1].sum(axis=1), 1, atol=1e-4)
    assert not one_by_one[:, -1].any(), "there is no other category"
    first, second, *_ = base.categories
    grouped = embedding.embedder.classify(features, [[first, second], []], backbone_digest=base.digest)
    np.testing.assert_allclose(grouped[:, 0], one_by_one[:, :2].sum(axis=1), atol=1e-5)
    assert not grouped[:, 1].any()
    np.testing.assert_allclose(grouped[:, 2], one_by_one[:, 2:-1].max(axis=1), atol=1e-5)


def test_no_rows_are_classified_as_nothing(embedding: Embedding) -> None:
    base = embedding.embedder.base()
    features = embedding.embedder.embed([]).features
    assert embedding.embedder.classify(features, [base.categories], backbone_digest=base.digest).shape == (0, 2)


def test_what_it_cannot_do_is_refused_and_the_next_request_served(embedding: Embedding, paths: list[Path]) -> None:
    embedder, base = embedding.embedder, embedding.embedder.base()
    features = embedder.embed(paths).features
    with pytest.raises(EmbedderUnavailable, match="backbones/ffff"):
        embedder.embed(paths, backbone_digest="ffff")
    with pytest.raises(EmbedderUnavailable, match="no classifier for backbone ffff"):
        embedder.classify(features, [base.categories], backbone_digest="ffff")
    with pytest.raises(EmbedderUnavailable, match="unicorn"):
        embedder.classify(features, [base.categories, ["unicorn"]], backbone_digest=base.digest)
    assert embedder.base() == base


def test_what_the_embedding_process_stores_says_the_same(tmp_path: Path) -> None:
    decoders = Decoders()
    client, artifacts = start_server(tmp_path, decoders), LocalArtifacts(tmp_path / "artifacts")
    base = client.base()
    wait_for(lambda: artifacts.keys("classifiers") == [classifier_key(base.digest)], "the stored classifier")
    names = [base.categories[:1], base.categories[5:7]]
    draw_pixels(tmp_path / "picture", 0)
    features = client.embed([tmp_path / "picture"]).features
    of_groups = client.classify(features, names, backbone_digest=base.digest)[:, :-1]
    opinion = PretrainedLayers.read(artifacts.fetch(classifier_key(base.digest))).opinion(names)
    expected = of_groups / of_groups.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(opinion.log_probabilities(features)), expected, atol=1e-3)
    decoders.close()
