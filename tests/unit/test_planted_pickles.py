"""A pickle put in the place of any file that Tandem reads is never unpickled: that would run what is in it."""

from __future__ import annotations

import contextlib
import os
import pickle  # noqa: TID251 - what must never run
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from backend.adapters.features import FeatureFiles
from backend.errors import TandemError
from model.backbones import CorruptBackbone, load_backbone, load_saved_backbone, save_backbone
from model.image_files import UnreadableImage, open_image
from model.weights import WrongWeights
from tests.world import PROJECT, World, pets


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.fixture
def payload(mark: Path) -> bytes:
    return pickle.dumps(Planted(mark), protocol=2)  # what torch's own reader of pickles would take


def test_the_payload_would_run(payload: bytes, mark: Path) -> None:
    pickle.loads(payload)
    assert mark.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_weights(tmp_path: Path, payload: bytes, mark: Path, name: str) -> None:
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(WrongWeights):
        load_backbone("shufflenet_v2_x0_5", tmp_path / name)
    assert not mark.exists()


def test_any_file_of_a_stored_backbone(tmp_path: Path, payload: bytes, mark: Path) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    save_backbone(load_backbone("shufflenet_v2_x0_5", "none"), folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        before = path.read_bytes()
        path.write_bytes(payload)
        with pytest.raises(CorruptBackbone):
            load_saved_backbone(folder)
        path.write_bytes(before)
    assert not mark.exists()


def test_an_image(payload: bytes, mark: Path) -> None:
    with pytest.raises(UnreadableImage), open_image(payload, min_side=8, max_pixels=10**6):
        pass
    assert not mark.exists()


def test_any_file_of_versions_and_features(tmp_path: Path, payload: bytes, mark: Path) -> None:
    database = SqlDatabase(f"sqlite:///{tmp_path / 'tandem.sqlite3'}")
    database.migrate()
    world = World(tmp_path, database)
    world.learn(pets(12))
    folders = (tmp_path / "artifacts", tmp_path / "features")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert {path.suffix for path in files} >= {".safetensors", ".json"}
    for path in files:
        before = path.read_bytes()
        path.write_bytes(payload)
        world.features = FeatureFiles(tmp_path / "features")
        with contextlib.suppress(TandemError):
            world.features.read(
                world.embedder.base().digest, [task.image_digest or "" for task in world.tasks.values()]
            )
        with contextlib.suppress(TandemError):
            world.new_prediction().predict(world.snapshot, list(world.tasks.values()))
        with contextlib.suppress(TandemError):
            world.review.suspects(PROJECT)
        path.write_bytes(before)
    assert not mark.exists()
