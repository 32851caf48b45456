"""What every artifact store promises: whole or not at all, the first publisher wins, nothing else is touched."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.adapters.shared_artifacts import open_artifacts
from backend.errors import NotFound
from backend.ports import ArtifactStore
from tests.artifacts import KEY, content, publish
from tests.object_storage import S3Server

OpenStore = Callable[[], ArtifactStore]


@pytest.fixture(params=["folder", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    if request.param == "file":
        return f"file://{tmp_path / 'artifacts'}"
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.new_bucket()}/some/prefix"


@pytest.fixture
def open_store(url: str, tmp_path: Path) -> OpenStore:
    """Opens the store as another machine would, with a cache of its own."""
    numbers = itertools.count()
    return lambda: open_artifacts(url, tmp_path / f"cache-{next(numbers)}", max_cache_bytes=2**20)


@pytest.fixture
def artifacts(open_store: OpenStore) -> ArtifactStore:
    return open_store()


@pytest.fixture
def n_rounds(url: str) -> int:
    return 10 if "://" in url else 60


def leftovers(artifacts: ArtifactStore) -> list[Path]:
    with artifacts.scratch() as own:
        return [path for path in own.parent.iterdir() if path != own]


def test_what_was_published_is_fetched(artifacts, open_store):
    publish(artifacts, KEY)
    expected = {"weights.bin": "weights", "sub/labels.json": "weights"}
    assert content(artifacts.fetch(KEY)) == expected
    assert content(open_store().fetch(KEY)) == expected
    assert not leftovers(artifacts)


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


def test_delete_removes_one_key_and_may_be_repeated(artifacts, open_store):
    publish(artifacts, KEY)
    publish(artifacts, "versions/p5/other")
    artifacts.delete(KEY)
    artifacts.delete(KEY)
    artifacts.delete("versions/p5")
    for store in (artifacts, open_store()):
        assert store.keys("") == ["versions/p5/other"]
        with pytest.raises(NotFound):
            store.fetch(KEY)
    assert not leftovers(artifacts)
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


def test_two_publishers_of_one_key(artifacts, n_rounds):
    for number in range(n_rounds // 5):
        key = f"versions/{number}"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda text, key=key: publish(artifacts, key, text), "abcd"))
        texts = set(content(artifacts.fetch(key)).values())
        assert len(texts) == 1


def test_readers_find_all_or_nothing_while_others_publish_and_delete(artifacts, n_rounds):
    def churn(_: int) -> None:
        for _ in range(n_rounds):
            publish(artifacts, KEY)
            artifacts.delete(KEY)

    def read(_: int) -> int:
        found = 0
        for _ in range(5 * n_rounds):
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


RACE = """
import sys
from pathlib import Path
from backend.adapters.shared_artifacts import open_artifacts
from backend.logs import configure_logs
from tests.artifacts import publish
configure_logs("ERROR")
artifacts = open_artifacts(sys.argv[1], Path(sys.argv[2]), max_cache_bytes=2**20)
artifacts.keys("")
print("ready", flush=True)
for round_number in sys.stdin:
    publish(artifacts, f"versions/{round_number.strip()}", sys.argv[3])
    print("done", flush=True)
"""


def test_two_processes_publish_one_key(url, open_store, tmp_path):
    """Whoever comes first wins; the other neither overwrites anything nor leaves anything."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, url, str(tmp_path / f"racer-{name}"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for name in ("a", "b")
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    for number in range(8):
        for racer in racers:
            racer.stdin.write(f"{number}\n")
            racer.stdin.flush()
        assert [racer.stdout.readline() for racer in racers] == ["done\n"] * 2
    for racer in racers:
        racer.communicate(timeout=30)
        assert racer.returncode == 0
    artifacts, other = open_store(), open_store()
    assert artifacts.keys("versions") == [f"versions/{number}" for number in range(8)]
    for number in range(8):
        first = artifacts.fetch(f"versions/{number}")
        assert content(first) in [{"weights.bin": name, "sub/labels.json": name} for name in ("a", "b")]
        assert content(other.fetch(f"versions/{number}")) == content(first)
