"""The image cache: named by content, bounded, and never a half image."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.adapters.image_cache import ImageCache


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def age(cache: ImageCache, digest: str, seconds: float) -> None:
    image = cache.get(digest)
    assert image is not None
    then = time.time() - seconds
    os.utime(image.path, (then, then))


def test_an_image_is_named_by_its_content(tmp_path):
    cache = ImageCache(tmp_path / "images", 1000)
    image = cache.store([b"ab", b"", b"c"])
    assert image.digest == hashlib.sha256(b"abc").hexdigest()
    assert image.path.read_bytes() == b"abc"
    assert ImageCache(tmp_path / "images", 1000).get(image.digest) == image
    assert cache.store([b"abc"]) == image
    assert [path.name for path in (tmp_path / "images").rglob("*") if path.is_file()].count(image.digest) == 1


def test_what_was_never_stored_is_not_there(tmp_path):
    assert ImageCache(tmp_path / "images", 1000).get("0" * 64) is None


@pytest.mark.parametrize("digest", ["", "abc", "../" * 20 + "etcd", "A" * 64, "0" * 64 + "\n"])
def test_a_malformed_digest_is_refused(tmp_path, digest):
    with pytest.raises(ValueError, match="is not a SHA-256"):
        ImageCache(tmp_path, 1000).get(digest)


def test_nothing_is_left_of_an_image_that_breaks_off(tmp_path):
    def broken():
        yield b"half"
        raise ConnectionError

    cache = ImageCache(tmp_path, 1000)
    with pytest.raises(ConnectionError):
        cache.store(broken())
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_least_recently_used_images_go_first(tmp_path):
    cache = ImageCache(tmp_path, 1000, grace_s=10)
    images = [cache.store([bytes([number]) * 100]) for number in range(10)]
    for position, image in enumerate(images):
        age(cache, image.digest, 1000 - position)
    cache.get(images[0].digest)
    cache.store([b"x" * 150])
    assert n_bytes(tmp_path) <= 900
    remaining = [image for image in images if image.path.exists()]
    assert remaining == [images[0], *images[4:]]


def test_an_image_that_was_just_handed_out_stays(tmp_path):
    cache = ImageCache(tmp_path, 300, grace_s=60)
    images = [cache.store([bytes([number]) * 100]) for number in range(10)]
    assert all(image.path.exists() for image in images)
    for image in images:
        age(cache, image.digest, 120)
    kept = cache.get(images[3].digest)
    cache.store([b"x" * 100])
    assert [image for image in images if image.path.exists()] == [kept]


def test_what_dead_writers_left_is_removed(tmp_path):
    tmp_path.joinpath(".dead").write_bytes(b"half")
    os.utime(tmp_path / ".dead", (0, 0))
    tmp_path.joinpath(".alive").write_bytes(b"half")
    ImageCache(tmp_path, 1000).store([b"abc"])
    assert not (tmp_path / ".dead").exists()
    assert (tmp_path / ".alive").exists()


def test_the_folder_is_not_counted_for_every_image(tmp_path, monkeypatch):
    cache = ImageCache(tmp_path, 100_000)
    counted = []
    monkeypatch.setattr(cache, "_evict", lambda: counted.append(1))
    for number in range(100):
        cache.store([number.to_bytes(4, "big") * 25])
    assert len(counted) == 2  # at the start, and after 5 % of the bound


def churn(folder: Path, seed: int) -> None:
    cache = ImageCache(folder, 20_000, grace_s=0.5)
    for number in range(100):
        content = (number * 7 + seed) % 400
        image = cache.store([content.to_bytes(2, "big") * 250])
        assert image.path.read_bytes() == content.to_bytes(2, "big") * 250
        other = cache.get(hashlib.sha256(((content * 3) % 400).to_bytes(2, "big") * 250).hexdigest())
        if other:
            assert hashlib.sha256(other.path.read_bytes()).hexdigest() == other.digest


def test_several_processes_and_threads_share_a_full_cache(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=churn, args=(tmp_path, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: churn(tmp_path, seed), (5, 6)))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob(".*"))
    time.sleep(0.6)
    ImageCache(tmp_path, 20_000, grace_s=0.5).store([b"last"])
    assert n_bytes(tmp_path) <= 20_000


def test_what_dead_writers_left_is_removed_and_what_is_written_stays(tmp_path):
    cache = ImageCache(tmp_path, 1000)
    (tmp_path / ".left").write_bytes(b"half")
    then = time.time() - 2
    os.utime(tmp_path / ".left", (then, then))

    def slow():
        yield b"first"
        for path in tmp_path.glob(".*"):
            os.utime(path, (then, then))
        ImageCache(tmp_path, 1000).clean()
        yield b"second"

    image = cache.store(slow())
    assert image.path.read_bytes() == b"firstsecond"
    assert list(tmp_path.glob(".*")) == []
