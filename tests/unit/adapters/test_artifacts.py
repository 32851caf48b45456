"""The artifact folder: whole or not at all, first publisher wins, nothing outside the folder is touched."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.adapters.artifacts import LocalArtifacts
from backend.errors import NotFound

KEY = "versions/p5/p5-v3-1a2b3c4d"


@pytest.fixture
def artifacts(tmp_path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


def publish(artifacts: LocalArtifacts, key: str, text: str = "weights") -> None:
    with artifacts.scratch() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "labels.json").write_text(text)
        (folder / "weights.bin").write_text(text)
        artifacts.publish(key, folder)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_was_published_is_fetched(artifacts, tmp_path):
    publish(artifacts, KEY)
    expected = {"weights.bin": "weights", "sub/labels.json": "weights"}
    assert content(artifacts.fetch(KEY)) == expected
    assert content(LocalArtifacts(tmp_path / "artifacts").fetch(KEY)) == expected
    assert not list((tmp_path / "artifacts" / ".scratch").iterdir())


def test_the_first_content_stays(artifacts):
    publish(artifacts, KEY, "first")
    publish(artifacts, KEY, "second")
    assert content(artifacts.fetch(KEY))["weights.bin"] == "first"


def test_a_folder_from_elsewhere_is_copied(artifacts, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "weights.bin").write_text("mine")
    artifacts.publish(KEY, own)
    assert content(artifacts.fetch(KEY)) == content(own) == {"weights.bin": "mine"}


def test_scratch_is_empty_and_goes_away(artifacts):
    with artifacts.scratch() as folder:
        assert not list(folder.iterdir())
        (folder / "half").write_text("written")
    assert not folder.exists()


def test_what_was_never_published_is_not_found(artifacts):
    with pytest.raises(NotFound, match=KEY):
        artifacts.fetch(KEY)
    publish(artifacts, KEY)
    with pytest.raises(NotFound):
        artifacts.fetch("versions/p5")
    with pytest.raises(NotFound):
        artifacts.fetch(f"{KEY}/weights.bin")


def test_keys_below_a_prefix(artifacts):
    assert artifacts.keys("") == artifacts.keys("versions") == []
    for key in ("versions/p5/b", "versions/p5/a", "versions/p51/c", "backbones/0a"):
        publish(artifacts, key)
    with artifacts.scratch() as folder:
        (folder / "weights.bin").write_text("not yet")
        assert artifacts.keys("") == ["backbones/0a", "versions/p5/a", "versions/p5/b", "versions/p51/c"]
    assert artifacts.keys("versions/p5") == artifacts.keys("versions/p5/") == ["versions/p5/a", "versions/p5/b"]
    assert artifacts.keys("backbones/0a") == ["backbones/0a"]
    assert artifacts.keys("backbones/0b") == []


def test_stray_files_are_no_artifacts(artifacts, tmp_path):
    publish(artifacts, KEY)
    for stray in ("notes.txt", ".DS_Store", "versions/.DS_Store"):
        (tmp_path / "artifacts" / stray).write_text("stray")
    publish(artifacts, "versions/p6/a")
    assert artifacts.keys("") == [KEY, "versions/p6/a"]


def test_delete_removes_one_key_and_may_be_repeated(artifacts, tmp_path):
    publish(artifacts, KEY)
    publish(artifacts, "versions/p5/other")
    artifacts.delete(KEY)
    artifacts.delete(KEY)
    artifacts.delete("versions/p5")
    assert artifacts.keys("") == ["versions/p5/other"]
    assert not list((tmp_path / "artifacts" / ".scratch").iterdir())
    publish(artifacts, KEY, "again")
    assert content(artifacts.fetch(KEY))["weights.bin"] == "again"


@pytest.mark.parametrize(
    "key", ["", "..", "../x", "a/../b", "/etc", "a//b", "a/", ".scratch/x", "a/.b", "a\\b", "a\n", "ä", "a" * 501]
)
def test_a_key_cannot_leave_the_folder(artifacts, tmp_path, key):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("precious")
    with artifacts.scratch() as folder:
        (folder / "file").write_text("content")
        for action in (artifacts.fetch, artifacts.delete, lambda key: artifacts.publish(key, folder)):
            with pytest.raises(ValueError, match="is not an artifact key"):
                action(key)
    assert (tmp_path / "x" / "file").read_text() == "precious"


def test_a_key_cannot_lie_within_another(artifacts):
    publish(artifacts, "versions/p5")
    with pytest.raises(ValueError, match="lies within a key"):
        publish(artifacts, "versions/p5/a")
    publish(artifacts, "backbones/a/b")
    with pytest.raises(ValueError, match="is the beginning of keys"):
        publish(artifacts, "backbones/a")
    assert artifacts.keys("") == ["backbones/a/b", "versions/p5"]


def test_an_empty_folder_is_refused(artifacts):
    with artifacts.scratch() as folder, pytest.raises(ValueError, match="has no file"):
        artifacts.publish(KEY, folder)


def test_two_publishers_of_one_key(artifacts):
    for number in range(20):
        key = f"versions/{number}"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda text, key=key: publish(artifacts, key, text), "abcd"))
        texts = set(content(artifacts.fetch(key)).values())
        assert len(texts) == 1


def test_readers_find_all_or_nothing_while_others_publish_and_delete(artifacts):
    def churn(_: int) -> None:
        for _ in range(60):
            publish(artifacts, KEY)
            artifacts.delete(KEY)

    def read(_: int) -> int:
        found = 0
        for _ in range(300):
            try:
                folder = os.open(artifacts.fetch(KEY), os.O_RDONLY)
            except (NotFound, FileNotFoundError):
                continue
            os.close(folder)
            found += 1
        return found

    with ThreadPoolExecutor(4) as pool:
        churns = [pool.submit(churn, 0) for _ in range(2)]
        reads = [pool.submit(read, 0) for _ in range(2)]
        for future in (*churns, *reads):
            future.result()
    assert artifacts.keys("") in ([], [KEY])


def hold_scratch(root: Path, ready) -> None:
    with LocalArtifacts(root).scratch() as folder:
        (folder / "half").write_text("half")
        ready.set()
        time.sleep(60)


def test_clean_removes_what_the_dead_left_and_spares_the_living(artifacts, tmp_path):
    assert artifacts.clean() == 0
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=hold_scratch, args=(tmp_path / "artifacts", ready))
    process.start()
    assert ready.wait(60)
    with artifacts.scratch() as own:
        assert artifacts.clean() == 0
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert artifacts.clean() == 1
        assert list(own.parent.iterdir()) == [own]


def test_clean_beside_busy_publishers(artifacts):
    with ThreadPoolExecutor(3) as pool:
        cleaning = pool.submit(lambda: [artifacts.clean() for _ in range(300)])
        list(pool.map(lambda number: publish(artifacts, f"versions/{number}"), range(60)))
        cleaning.result()
    assert len(artifacts.keys("versions")) == 60
    assert all(len(content(artifacts.fetch(key))) == 2 for key in artifacts.keys("versions"))
