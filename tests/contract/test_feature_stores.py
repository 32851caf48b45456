"""What every feature store promises; more about the files is in ``tests/unit/adapters/test_features.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.adapters import shared_features
from backend.adapters.features import FeatureFiles
from backend.adapters.object_storage import ObjectStorage
from backend.adapters.shared_features import SharedFeatures
from backend.errors import NotFound
from backend.ports import FeatureStore
from tests.numbered_rows import BACKBONE, BLOCK_SIZES, append, assert_holds, digests, rows
from tests.object_storage import S3Server


@pytest.fixture(params=["files", "shared by file", "shared by s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setattr(shared_features, "FRESH_S", 0.0)
    files = FeatureFiles(tmp_path / "features")
    if request.param == "files":
        return files
    url = f"file://{tmp_path / 'storage'}"
    if request.param == "shared by s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.new_bucket()}/prefix"
    return SharedFeatures(files, ObjectStorage(url), tmp_path / "exchange", patience_s=60)


def test_rows_are_read_in_the_order_asked_with_gaps_and_repeats(store: FeatureStore) -> None:
    append(store, range(10))
    features, found = store.read(BACKBONE, digests([7, 99, 3, 7]))
    assert features.dtype == np.float16
    assert found.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(features, rows([7, 3, 7]))


def test_an_empty_store_finds_nothing(store: FeatureStore) -> None:
    assert store.read(BACKBONE, digests([1]))[0].shape == (0, 0)
    assert store.holds(BACKBONE, digests([1])).tolist() == [False]
    assert (store.count(BACKBONE), store.backbones(), list(store.segments(BACKBONE))) == (0, [], [])
    with pytest.raises(NotFound, match="not embedded yet"):
        store.block_sizes(BACKBONE)
    store.delete(BACKBONE)
    assert store.compact(BACKBONE, []) == 0


def test_a_stored_row_stays_as_it_is(store: FeatureStore) -> None:
    append(store, [1, 2])
    store.append(BACKBONE, digests([2, 3, 3]), rows([50, 3, 60]), block_sizes=BLOCK_SIZES)
    append(store, [])
    assert_holds(store, [1, 2, 3], absent=[4])
    assert (store.count(BACKBONE), store.block_sizes(BACKBONE), store.backbones()) == (3, BLOCK_SIZES, [BACKBONE])


def test_only_what_is_kept_stays(store: FeatureStore) -> None:
    append(store, range(30))
    assert store.compact(BACKBONE, digests([*range(0, 30, 3), 500])) == 20
    assert_holds(store, range(0, 30, 3))
    assert store.count(BACKBONE) == 10
    append(store, [1])
    assert_holds(store, [*range(0, 30, 3), 1])


def test_a_deleted_backbone_is_gone_and_others_are_not(store: FeatureStore) -> None:
    append(store, range(10))
    store.append("ffff", digests([1]), np.ones((1, 3), np.float16), block_sizes=(3,))
    store.delete("ffff")
    assert store.backbones() == [BACKBONE]
    assert not store.read("ffff", digests([1]))[1].any()
    assert_holds(store, range(10))


def test_all_rows_go_into_another_store(store: FeatureStore, tmp_path: Path) -> None:
    append(store, range(50))
    other = FeatureFiles(tmp_path / "other")
    append(other, [3])
    for segment in store.segments(BACKBONE):
        other.add_segment(BACKBONE, segment)
    assert_holds(other, range(50), absent=[50])
    for segment in other.segments(BACKBONE):
        store.add_segment(BACKBONE, segment)
    assert (store.count(BACKBONE), other.count(BACKBONE)) == (50, 50)


@pytest.mark.parametrize("segment", [b"", b"nonsense" * 20])
def test_what_is_no_segment_is_refused(store: FeatureStore, segment: bytes) -> None:
    with pytest.raises(ValueError, match="not a segment"):
        store.add_segment(BACKBONE, segment)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a\n"])
def test_a_backbone_digest_cannot_leave_the_folder(store: FeatureStore, name: str) -> None:
    for action in (
        lambda: store.read(name, []),
        lambda: store.append(name, digests([1]), rows([1]), block_sizes=BLOCK_SIZES),
        lambda: store.compact(name, []),
        lambda: store.delete(name),
        lambda: list(store.segments(name)),
    ):
        with pytest.raises(ValueError, match="is not a backbone digest"):
            action()
