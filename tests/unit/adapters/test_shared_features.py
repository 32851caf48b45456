"""Features on object storage: nobody embeds twice what another machine has embedded, and nobody waits for a storage."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.adapters import feature_exchange, shared_features
from backend.adapters.features import FeatureFiles
from backend.adapters.object_storage import ObjectStorage
from backend.adapters.shared_features import SharedFeatures
from backend.errors import StoreUnavailable
from tests.numbered_rows import BACKBONE, append, assert_holds, digests, found_among


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_features, "FRESH_S", 0.0)


def machine(root: Path, name: str, *, patience_s: float = 60) -> SharedFeatures:
    files = FeatureFiles(root / name / "features")
    storage = ObjectStorage(f"file://{root / 'storage'}")
    return SharedFeatures(files, storage, root / name / "exchange", patience_s=patience_s)


def segments(root: Path) -> list[Path]:
    return sorted((root / "storage" / "features" / BACKBONE).glob("*"))


def n_published(root: Path) -> int:
    return sum(int(path.name[:6]) for path in segments(root))


def waiting(root: Path, name: str) -> list[Path]:
    return list((root / name / "exchange" / BACKBONE / "outbox").glob("*.safetensors"))


class Outage:
    """Switches every request to a storage off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._originals = {name: getattr(ObjectStorage, name) for name in ("read", "create", "names", "delete")}
        self.n_requests = 0

    def begin(self) -> None:
        def fail(*_: object) -> None:
            self.n_requests += 1
            raise StoreUnavailable("no answer")

        for name in self._originals:
            self._patch.setattr(ObjectStorage, name, fail)

    def end(self) -> None:
        for name, original in self._originals.items():
            self._patch.setattr(ObjectStorage, name, original)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def test_an_empty_machine_gets_everything_back(tmp_path):
    first = machine(tmp_path, "one")
    append(first, range(100))
    append(first, range(50, 150))
    second = machine(tmp_path, "two")
    assert second.block_sizes(BACKBONE) == (2, 3)
    assert_holds(second, range(150), absent=[150])
    assert n_published(tmp_path) == 150, "what was downloaded is not published again"
    assert not waiting(tmp_path, "one")


def test_machines_see_what_the_other_appends(tmp_path):
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    for start in range(0, 60, 20):
        append(first, range(start, start + 10))
        append(second, range(start + 10, start + 20))
        for store in (first, second):
            assert_holds(store, range(start + 20))
    assert n_published(tmp_path) == 60


def test_files_removed_by_hand_come_back(tmp_path):
    append(machine(tmp_path, "one"), range(30))
    for path in (tmp_path / "one" / "features" / BACKBONE).iterdir():
        path.unlink()
    assert_holds(machine(tmp_path, "one"), range(30))


def test_an_outage_stops_nobody_and_loses_nothing(tmp_path, outage):
    store = machine(tmp_path, "one")
    append(store, range(10))
    outage.begin()
    append(store, range(10, 20))
    n_requests = outage.n_requests
    append(store, range(20, 30))
    assert_holds(store, range(30), absent=[31])
    assert outage.n_requests == n_requests, "a storage that does not answer is left alone for some time"
    assert store.backbones() == [BACKBONE]
    assert store.compact(BACKBONE, digests(range(30))) == 0
    assert waiting(tmp_path, "one")
    outage.end()
    restarted = machine(tmp_path, "one")
    append(restarted, [30])
    assert not waiting(tmp_path, "one")
    assert_holds(machine(tmp_path, "two"), range(31))


def test_a_full_disk_keeps_back_nothing_that_is_here(tmp_path, monkeypatch):
    store = machine(tmp_path, "one")
    append(store, range(10))
    append(machine(tmp_path, "two"), range(10, 20))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(FeatureFiles, "add_segment", refuse)
        assert found_among(store, range(20)) == set(range(10))
    assert found_among(store, range(20)) == set(range(20))


def test_nobody_waits_longer_than_told(tmp_path, monkeypatch):
    answer = threading.Event()
    names = ObjectStorage.names

    def slow(self: ObjectStorage, prefix: str) -> list[str]:
        assert answer.wait(60)
        return names(self, prefix)

    append(machine(tmp_path, "one"), range(5))
    monkeypatch.setattr(ObjectStorage, "names", slow)
    store = machine(tmp_path, "two", patience_s=0.05)
    begun_s = time.monotonic()
    append(store, [7])
    assert_holds(store, [7], absent=[1])
    assert time.monotonic() - begun_s < 10
    answer.set()
    while not store.holds(BACKBONE, digests([1])).all():
        time.sleep(0.01)
    assert_holds(store, [*range(5), 7])


def test_many_small_segments_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_exchange, "MAX_SMALL_SEGMENTS", 8)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    for number in range(20):
        append((first, second)[number % 2], [number])
    assert len(segments(tmp_path)) < 8
    for name in ("one", "two", "three"):
        assert_holds(machine(tmp_path, name), range(20))


def test_a_machine_that_merges_removes_nothing_it_has_not_read(tmp_path, monkeypatch):
    """Another machine publishes and merges between any two steps of this one."""
    monkeypatch.setattr(feature_exchange, "MAX_SMALL_SEGMENTS", 4)

    def work(name: str, numbers: Iterable[int]) -> None:
        store = machine(tmp_path, name)
        for number in numbers:
            append(store, [number])

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(work, name, range(start, 60, 3)) for start, name in enumerate(("one", "two", "three"))]
        for each in done:
            each.result()
    assert_holds(machine(tmp_path, "four"), range(60))


def test_what_nobody_needs_goes_from_the_storage_too(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_exchange, "MIN_UNUSED_ROWS", 10)
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    append(first, range(100))
    assert_holds(second, range(100))
    append(second, range(100, 110))
    kept = [*range(0, 100, 4), *range(100, 110)]
    assert first.compact(BACKBONE, digests(kept)) == 75
    assert n_published(tmp_path) == len(kept)
    published = segments(tmp_path)
    assert second.compact(BACKBONE, digests(kept)) == 75
    assert segments(tmp_path) == published, "once is enough"
    assert_holds(machine(tmp_path, "three"), kept, absent=[1, 2, 3])


def test_a_deleted_backbone_does_not_come_back(tmp_path):
    store = machine(tmp_path, "one")
    append(store, range(10))
    store.delete(BACKBONE)
    assert segments(tmp_path) == []
    assert_holds(machine(tmp_path, "two"), [], absent=range(10))
    assert store.backbones() == []


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_an_altered_segment_is_replaced(tmp_path, damage):
    store = machine(tmp_path, "one")
    append(store, range(10))
    append(store, range(10, 20))
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    other = machine(tmp_path, "two")
    held = other.holds(BACKBONE, digests(range(20)))
    assert held.sum() == 10
    append(other, range(20))
    assert_holds(other, range(20))
    assert_holds(machine(tmp_path, "three"), range(20))
