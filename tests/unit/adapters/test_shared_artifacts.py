"""Artifacts in an object storage: what the cache is good for, and what is altered is never used."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from backend.adapters import shared_artifacts
from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.object_storage import ObjectStorage
from backend.adapters.shared_artifacts import SharedArtifacts
from backend.errors import ConfigurationError, NotFound, StoreUnavailable
from tests.artifacts import KEY, content, publish

CONTENT = {"weights.bin": "weights", "sub/labels.json": "weights"}


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "storage"


def machine(root: Path, name: str = "one", max_cache_bytes: int = 2**20) -> SharedArtifacts:
    return SharedArtifacts(ObjectStorage(f"file://{root}"), root.parent / name, max_cache_bytes=max_cache_bytes)


def cached(root: Path, name: str, key: str = KEY) -> Path:
    return root.parent / name / key / "files" / "weights.bin"


def stored_file(root: Path, name: str = "weights.bin") -> Path:
    (path,) = root.glob(f"files/{KEY}/*/{name}")
    return path


def test_what_is_in_the_cache_needs_no_storage(root):
    publish(machine(root))
    other = machine(root, "two")
    other.fetch(KEY)
    root.rename(root.with_name("gone"))
    for store in (other, machine(root, "two"), machine(root, "one")):
        assert content(store.fetch(KEY)) == CONTENT
    with pytest.raises(NotFound):
        machine(root, "three").fetch(KEY)


def test_a_spoilt_cache_is_filled_again(root):
    publish(machine(root))
    for spoil in (lambda path: path.write_text("WEIGHTS"), Path.unlink, lambda path: path.write_text("weights!")):
        spoil(cached(root, "one"))
        assert content(machine(root).fetch(KEY)) == CONTENT
    (cached(root, "one").parents[1] / "manifest.json").write_text("{}")
    assert content(machine(root).fetch(KEY)) == CONTENT


def test_what_another_process_has_just_fetched_stays(root, monkeypatch):
    """All processes of a machine want a version the moment that it is promoted."""
    publish(machine(root))
    one, other = machine(root, "two"), machine(root, "two")
    fetch = LocalArtifacts.fetch
    fetched: list[Path] = []

    def fetch_just_before(cache: LocalArtifacts, key: str) -> Path:
        try:
            return fetch(cache, key)
        finally:
            if not fetched:
                fetched.append(Path())
                fetched[0] = other.fetch(key)

    monkeypatch.setattr(LocalArtifacts, "fetch", fetch_just_before)
    assert not one._is_cached(KEY)
    assert content(fetched[0]) == CONTENT


def test_what_was_altered_in_the_storage_is_not_used(root):
    publish(machine(root))
    stored_file(root).write_text("WEIGHTS")
    with pytest.raises(NotFound, match=r"altered: the SHA-256 of weights\.bin"):
        machine(root, "two").fetch(KEY)
    assert not cached(root, "two").exists()
    stored_file(root).unlink()
    with pytest.raises(NotFound, match=r"lacks weights\.bin"):
        machine(root, "two").fetch(KEY)


@pytest.mark.parametrize("name", ["../../../stolen", "/etc/stolen", "a/../../b", ".hidden", ""])
def test_a_manifest_cannot_write_outside_the_cache(root, name):
    publish(machine(root))
    path = root / "manifests" / f"{KEY}.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"].pop("weights.bin")
    path.write_text(json.dumps(manifest))
    with pytest.raises(NotFound, match="not one of ours"):
        machine(root, "two").fetch(KEY)
    assert not list(root.parent.rglob("stolen"))


def test_the_cache_keeps_within_its_bounds_what_was_used_last(root, monkeypatch):
    monkeypatch.setattr(shared_artifacts, "RECENT_S", 1000.0)
    store = machine(root, max_cache_bytes=40)  # an artifact of ours has 14 bytes
    for number in range(5):
        publish(store, f"versions/{number}")
    held = [key for key in range(5) if cached(root, "one", f"versions/{key}").exists()]
    assert held == [0, 1, 2, 3, 4], "all were used a moment ago"
    for number in range(5):
        used_at = time.time() - 2000 + number
        os.utime(cached(root, "one", f"versions/{number}").parents[1] / "manifest.json", (used_at, used_at))
    store.fetch("versions/1")
    publish(store, "versions/5")
    held = [key for key in range(6) if cached(root, "one", f"versions/{key}").exists()]
    assert held == [1, 5]
    assert all(content(store.fetch(f"versions/{number}")) == CONTENT for number in range(6))


def test_a_loser_leaves_nothing(root, monkeypatch):
    first, second = machine(root), machine(root, "two")
    create = ObjectStorage.create

    def create_after_the_other(self: ObjectStorage, name: str, content: bytes) -> bool:
        monkeypatch.setattr(ObjectStorage, "create", create)
        publish(first, text="first")
        return create(self, name, content)

    monkeypatch.setattr(ObjectStorage, "create", create_after_the_other)
    publish(second, text="second")
    assert stored_file(root).read_text() == "first"
    assert content(second.fetch(KEY))["weights.bin"] == "first"


def test_an_answer_that_got_lost_is_no_defeat(root, monkeypatch):
    create = ObjectStorage.create
    monkeypatch.setattr(ObjectStorage, "create", lambda *arguments: create(*arguments) and False)
    publish(machine(root))
    assert content(machine(root, "two").fetch(KEY)) == CONTENT


def test_what_a_dead_publisher_left_goes_after_a_day(root, monkeypatch):
    def die(*_: object) -> bool:
        raise StoreUnavailable("dead")

    store = machine(root)
    publish(store)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "create", die)
        for key in ("versions/p5/other", KEY.replace("v3", "v4")):
            with pytest.raises(StoreUnavailable):
                publish(store, key)
    (attempt,) = root.glob(f"files/{KEY}/*")
    for old in ("00000001-0123456789abcdef", "00000002-0123456789abcdef"):
        (attempt.parent / old).mkdir()
        (attempt.parent / old / "weights.bin").write_text("old")
    assert store.clean() == 2
    assert not list(root.glob("files/*/*/*/00000*/*"))
    monkeypatch.setattr(shared_artifacts, "ABANDONED_S", -1.0)
    assert store.clean() == 4
    assert content(machine(root, "two").fetch(KEY)) == CONTENT


def test_a_storage_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tandem")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    store = SharedArtifacts(ObjectStorage("s3://bucket/prefix"), tmp_path / "cache", max_cache_bytes=2**20)
    for action in (lambda: store.fetch(KEY), lambda: publish(store), lambda: store.keys(""), lambda: store.delete(KEY)):
        with pytest.raises(
            StoreUnavailable, match=r"s3://bucket/prefix cannot be used now.*check its address"
        ) as caught:
            action()
        assert "secret-of-the-test" not in str(caught.value)
    assert store.clean() == 0


@pytest.mark.parametrize("bucket", ["missing"])
def test_a_bucket_that_is_not_there(s3_server, tmp_path, monkeypatch, bucket):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = SharedArtifacts(ObjectStorage(f"s3://{bucket}/prefix"), tmp_path / "cache", max_cache_bytes=2**20)
    with pytest.raises(StoreUnavailable, match="bucket"):
        publish(store)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://x", "cannot hold artifacts"),
        ("s3://user:secret@bucket", "without credentials"),
        ("nonsense://x", "Protocol not known"),
    ],
)
def test_a_url_that_cannot_be_used(url, reason):
    with pytest.raises(ConfigurationError, match=reason) as caught:
        ObjectStorage(url)
    assert "secret" not in str(caught.value)
