"""The head's arithmetic against the same thing written down plainly in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from model import head as head_module
from model.head import Head, normalise, signed_root

BLOCK_SIZES = (3, 5, 8)
N_FEATURES = sum(BLOCK_SIZES)
N_CLASSES = 4


def make_features(n_images: int) -> np.ndarray:
    return np.random.default_rng(n_images).normal(0.5, 1, (n_images, N_FEATURES)).astype(np.float16)


def make_centre() -> np.ndarray:
    return signed_root(make_features(50)).mean(axis=0)


def make_head() -> Head:
    random = np.random.default_rng(7)
    return Head(
        block_sizes=BLOCK_SIZES,
        centre=make_centre(),
        weight=random.normal(size=(N_FEATURES, N_CLASSES)).astype(np.float32),
        bias=random.normal(size=N_CLASSES).astype(np.float32),
    )


def plainly_normalised(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    centred = np.sign(wide) * np.sqrt(np.abs(wide)) - centre
    blocks = np.split(centred, np.cumsum(BLOCK_SIZES)[:-1], axis=1)
    return np.hstack([block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-6) for block in blocks])


@pytest.fixture(params=[1, 3, 10_000], ids="{} rows in a chunk".format)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(head_module, "VALUES_PER_CHUNK", request.param * N_FEATURES)


def test_the_root_of_every_float16_keeps_its_sign():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    wide = finite.astype(np.float32)
    np.testing.assert_array_equal(signed_root(finite), np.copysign(np.sqrt(np.abs(wide)), wide))
    assert signed_root(finite).dtype == np.float32
    assert np.isnan(signed_root(np.array([np.nan], np.float16))).all()
    np.testing.assert_array_equal(signed_root(np.array([np.inf, -np.inf], np.float16)), [np.inf, -np.inf])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_root_is_the_same_from_wider_numbers(dtype):
    features = make_features(20)
    np.testing.assert_array_equal(signed_root(features.astype(dtype)), signed_root(features))


def test_features_are_not_changed():
    features = make_features(20).astype(np.float32)
    before = features.copy()
    signed_root(features)
    normalise(features, BLOCK_SIZES, make_centre())
    make_head().logits(features)
    np.testing.assert_array_equal(features, before)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_normalised_block_by_block(dtype):
    features = make_features(10).astype(dtype)
    expected = plainly_normalised(features, make_centre())
    np.testing.assert_allclose(normalise(features, BLOCK_SIZES, make_centre()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_images", [0, 1, 10])
def test_logits_are_those_of_normalised_rows(dtype, n_images):
    head, features = make_head(), make_features(n_images).astype(dtype)
    expected = plainly_normalised(features, head.centre) @ head.weight + head.bias
    logits = head.logits(features)
    assert (logits.shape, logits.dtype) == ((n_images, N_CLASSES), np.float32)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_contiguous_score_the_same():
    head, features = make_head(), make_features(20)
    np.testing.assert_array_equal(head.logits(features[::2]), head.logits(features[::2].copy()))
    transposed = np.asfortranarray(features)
    np.testing.assert_array_equal(head.logits(transposed), head.logits(features))


def test_a_row_on_the_centre_has_the_bias_alone():
    features = make_features(1)
    centre = signed_root(features)[0]
    head = Head(block_sizes=BLOCK_SIZES, centre=centre, weight=make_head().weight, bias=make_head().bias)
    np.testing.assert_array_equal(normalise(features, BLOCK_SIZES, centre), np.zeros((1, N_FEATURES)))
    np.testing.assert_array_equal(head.logits(features), head.bias[None])


@pytest.mark.parametrize("shape", [(4, N_FEATURES + 1), (N_FEATURES,)])
def test_rows_of_another_backbone_are_refused(shape):
    with pytest.raises(ValueError, match="are not rows of blocks"):
        make_head().logits(np.zeros(shape, np.float16))
    with pytest.raises(ValueError, match="are not rows of blocks"):
        normalise(np.zeros(shape, np.float16), BLOCK_SIZES, make_centre())
