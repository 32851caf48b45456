"""Embedding: order, damage, precision, short memory."""

from __future__ import annotations

import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from model.backbones import Backbone, load_backbone
from model.features import Engine, choose_device
from model.transforms import normalise, to_pixels, to_views

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("squeezenet1_1", "none")


@pytest.fixture(params=["cpu", "cuda"])
def engine(request: pytest.FixtureRequest, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that works as on a processor, and one that stages batches ahead as for a GPU; both compute on a processor."""
    engine = Engine(backbone)
    monkeypatch.setattr(engine, "device", request.param)
    return engine


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(file, format="PNG")
    return file.getvalue()


def in_float32(backbone: Backbone, sources: list[bytes]) -> np.ndarray:
    pixels = np.stack([to_pixels(each, backbone.input_spec, max_pixels=MAX_PIXELS) for each in sources])
    with torch.inference_mode():
        return backbone.network(normalise(pixels, backbone.input_spec)).numpy()


def test_each_image_has_its_row_and_bad_ones_only_their_reason(engine: Engine, tmp_path: Path) -> None:
    good = [picture(seed) for seed in range(7)]
    (tmp_path / "file.png").write_bytes(good[6])
    wide = BytesIO()
    Image.new("1", (2000, 2000)).save(wide, format="PNG")
    sources = [good[0], b"no image", good[1], good[2], good[3][:300], tmp_path / "gone.png", wide.getvalue()]
    sources += [good[4], good[5], tmp_path / "file.png"]

    embedded = engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=2)

    backbone = engine.backbone
    assert embedded.features.shape == (6, backbone.n_features)
    assert embedded.features.dtype == np.float16
    assert np.isfinite(embedded.features).all()
    assert sorted(embedded.problems) == [1, 4, 5, 6]
    assert embedded.problems[1].startswith("not a JPEG")
    assert embedded.problems[5] == "the file is not there"
    assert "2000 x 2000" in embedded.problems[6]
    expected = in_float32(backbone, [good[index] for index in (0, 1, 2, 4, 5, 6)])
    np.testing.assert_allclose(embedded.features, expected, atol=0.05 * expected.std())


@pytest.mark.parametrize("sources", [[], [b"no image"], [b"no image"] * 3])
def test_nothing_readable_gives_no_rows(engine: Engine, sources: list[bytes]) -> None:
    embedded = engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=2)
    assert embedded.features.shape == (0, engine.backbone.n_features)
    assert list(embedded.problems) == list(range(len(sources)))


def test_the_same_images_give_the_same_features(backbone: Backbone) -> None:
    sources = [picture(seed) for seed in range(5)]
    engine = Engine(backbone)
    first = engine.embed(sources, max_pixels=MAX_PIXELS)
    again = engine.embed(sources, max_pixels=MAX_PIXELS, n_decoders=3)
    assert np.array_equal(first.features, again.features)
    one_by_one = np.concatenate([engine.embed([each], max_pixels=MAX_PIXELS).features for each in sources])
    np.testing.assert_allclose(first.features, one_by_one, atol=0.05 * first.features.astype(np.float32).std())


def test_features_are_the_mean_over_views(backbone: Backbone) -> None:
    two = load_backbone("squeezenet1_1", "none", n_views=2)
    views = np.stack([to_views(picture(seed), two.input_spec, max_pixels=MAX_PIXELS) for seed in range(3)])
    with torch.inference_mode():
        by_view = [two.network(normalise(views[:, view], two.input_spec)).numpy() for view in range(2)]
    features = Engine(two).embed([picture(seed) for seed in range(3)], max_pixels=MAX_PIXELS).features
    expected = np.mean(by_view, axis=0)
    np.testing.assert_allclose(features, expected, atol=0.05 * expected.std())
    centre_only = Engine(backbone).embed([picture(seed) for seed in range(3)], max_pixels=MAX_PIXELS).features
    assert np.abs(centre_only - expected).mean() > 0.05 * expected.std()


def test_values_beyond_float16_are_clipped(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(backbone)
    extreme = np.array([[1e9, -1e9, np.nan, np.inf, 1.0]], np.float32)
    monkeypatch.setattr(engine, "runtime", lambda _: extreme)
    monkeypatch.setattr(type(engine.backbone), "n_features", 5)
    features = engine.embed([picture(0)], max_pixels=MAX_PIXELS).features
    assert features.tolist() == [[65504.0, -65504.0, 0.0, 65504.0, 1.0]]


def test_progress_is_told_and_can_end_the_work(engine: Engine) -> None:
    sources = [picture(0), picture(1), b"no image", picture(2), b"no image"]
    told: list[tuple[int, int]] = []
    engine.embed(
        sources, max_pixels=MAX_PIXELS, batch_size=2, on_progress=lambda done, total: told.append((done, total))
    )
    assert told == [(2, 5), (5, 5)]

    def cancel(done: int, total: int) -> None:
        raise InterruptedError(f"{done} of {total}")

    with pytest.raises(InterruptedError, match="2 of 5"):
        engine.embed(sources, max_pixels=MAX_PIXELS, batch_size=2, on_progress=cancel)


def test_the_next_batch_is_staged_while_a_gpu_computes(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(backbone)
    monkeypatch.setattr(engine, "device", "cuda")
    staged = [threading.Event() for _ in range(3)]
    not_yet, turns = iter(staged), iter(range(3))
    copy, runtime = engine._staging.copied, engine.runtime

    def copied(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        copies = copy(*tensors)
        next(not_yet).set()
        return copies

    def compute(pixels: torch.Tensor) -> np.ndarray:
        for each in staged[: next(turns) + 2]:
            assert each.wait(30)
        return runtime(pixels)

    monkeypatch.setattr(engine._staging, "copied", copied)
    monkeypatch.setattr(engine, "runtime", compute)
    embedded = engine.embed([picture(seed) for seed in range(5)], max_pixels=MAX_PIXELS, batch_size=2)
    assert len(embedded.features) == 5
    assert list(turns) == []


def test_a_failure_while_a_batch_is_staged_is_raised(engine: Engine) -> None:
    def broken(*_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no process decodes")

    with pytest.raises(RuntimeError, match="no process decodes"):
        engine.embed([picture(0)], max_pixels=MAX_PIXELS, views=broken)
    assert not [each for each in threading.enumerate() if each.name.startswith("stage")]


def test_a_batch_too_large_for_the_memory_is_halved(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [picture(seed) for seed in range(7)]
    expected = engine.embed(sources, max_pixels=MAX_PIXELS).features
    runtime, sizes = engine.runtime, []

    def with_room_for_two(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return runtime(pixels)

    monkeypatch.setattr(engine, "runtime", with_room_for_two)
    with capture_logs() as logs:
        features = engine.embed(sources, max_pixels=MAX_PIXELS).features
    np.testing.assert_allclose(features, expected, atol=0.05 * expected.astype(np.float32).std())
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert engine.batch_size <= 2
    assert {entry["log_level"] for entry in logs} == {"warning"}


def test_no_room_for_one_image_is_an_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: np.ndarray) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "runtime", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        engine.embed([picture(0), picture(1)], max_pixels=MAX_PIXELS)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [choose_device(wish) for wish in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="neither auto, cpu nor cuda"):
        choose_device("tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [choose_device(wish) for wish in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.gpu
def test_on_a_gpu_features_are_the_same() -> None:
    backbone = load_backbone("mobilenet_v3_large", "none")
    sources = [picture(seed) for seed in range(300)]
    sources[150] = b"no image"
    embedded = Engine(backbone, "cuda").embed(sources, max_pixels=MAX_PIXELS)
    assert list(embedded.problems) == [150]
    expected = Engine(backbone).embed(sources, max_pixels=MAX_PIXELS).features.astype(np.float32)
    assert np.abs(embedded.features - expected).mean() < 0.02 * expected.std()
