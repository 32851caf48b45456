import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import CorruptCheckpoint, load_out_of_fold, load_predictor, save_checkpoint
from model.conformal import ConformalReport
from model.evaluation import evaluate
from model.head import Head
from model.inference import Predictor
from model.learned import Learned, OutOfFold


def make_learned(*, multiple: bool = False) -> Learned:
    random = np.random.default_rng(9)
    probabilities = random.random((4, 2)).astype(np.float32)
    targets = np.array([[True, False]] * 4) if multiple else np.array([0, 1, 1, 0])
    report = evaluate(probabilities, targets, multiple=multiple)
    return Learned(
        predictor=Predictor(
            class_names=("ant", "käfer"),
            multiple=multiple,
            head=Head(
                block_sizes=(2, 3),
                centre=random.random(5).astype(np.float32),
                weight=random.random((5, 2)).astype(np.float32),
                bias=np.zeros(2, np.float32),
            ),
            temperature=0.7,
            thresholds=(0.4, 0.6) if multiple else None,
        ),
        method="pool",
        candidates=("pool", "labels"),
        seed=7,
        uncalibrated=report,
        calibrated=replace(report, ece=0.01),
        conformal=ConformalReport(n=4, coverage=1.0, mean_size=1.5, share_decided=0.5),
        out_of_fold=OutOfFold(digests=("a", "b", "c", "d"), probabilities=probabilities),
        seconds=0.5,
    )


@pytest.mark.parametrize("multiple", [False, True])
def test_all_that_was_saved_comes_back(tmp_path: Path, multiple: bool) -> None:
    learned = make_learned(multiple=multiple)
    digest = save_checkpoint(tmp_path, learned, backbone_digest="f00d")
    assert len(digest) == 64
    features = np.random.default_rng(1).random((3, 5)).astype(np.float16)
    predictor = load_predictor(tmp_path)
    np.testing.assert_array_equal(predictor.predict_proba(features), learned.predictor.predict_proba(features))
    assert predictor.suggest(features) == learned.predictor.suggest(features)
    assert predictor.backbone_digest == "f00d"
    remembered = load_out_of_fold(tmp_path)
    assert remembered.digests == learned.out_of_fold.digests
    np.testing.assert_array_equal(remembered.probabilities, learned.out_of_fold.probabilities)
    content = json.loads((tmp_path / "model.json").read_text())["content"]
    assert content["method"] == "pool"
    assert content["calibrated"]["log_loss"] == learned.calibrated.log_loss
    assert content["uncalibrated"]["ece"] == learned.uncalibrated.ece


def test_equal_contents_have_equal_digests_and_others_have_others(tmp_path: Path) -> None:
    digests = []
    for name, backbone_digest in (("one", "f00d"), ("two", "f00d"), ("three", "beef")):
        folder = tmp_path / name
        folder.mkdir()
        digests.append(save_checkpoint(folder, make_learned(), backbone_digest=backbone_digest))
    assert digests[0] == digests[1] != digests[2]


FILES = ["model.json", "head.safetensors", "out_of_fold.safetensors", "out_of_fold.json", "labels.json"]


def damaged(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    match damage:
        case "missing":
            path.unlink()
            return
        case "truncated":
            del content[len(content) // 2 :]
        case "altered":
            content[len(content) // 2] ^= 1
        case "empty":
            content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    (tmp_path / "labels.json").write_text('[["a", "ant"]]')
    save_checkpoint(tmp_path, make_learned(), backbone_digest="f00d")
    damaged(tmp_path, name, damage)
    for load in (load_predictor, load_out_of_fold):
        with pytest.raises(CorruptCheckpoint):
            load(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", '{"content": 1, "sha256": ""}', '{"content": {}, "sha256": 5}', "[" * 100_000, '{"a": NaN}'],
)
def test_json_that_is_something_else_is_found(tmp_path: Path, content: str) -> None:
    save_checkpoint(tmp_path, make_learned(), backbone_digest="f00d")
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CorruptCheckpoint):
        load_predictor(tmp_path)


def test_no_folder_is_a_corrupt_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint):
        load_predictor(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", np.zeros((5, 3), np.float32)), ("weight", np.zeros((5, 2), np.float64)),
     ("bias", np.full(2, np.nan, np.float32)), ("centre", np.zeros((5, 1), np.float32))],
)  # fmt: skip
def test_absurd_arrays_are_found_even_with_right_checksums(tmp_path: Path, name: str, value: np.ndarray) -> None:
    learned = make_learned()
    head = learned.predictor.head
    object.__setattr__(head, name, value)
    save_checkpoint(tmp_path, learned, backbone_digest="f00d")
    with pytest.raises(CorruptCheckpoint):
        load_predictor(tmp_path)


def test_a_figure_that_is_not_a_number_is_never_saved(tmp_path: Path) -> None:
    learned = make_learned()
    learned = replace(learned, calibrated=replace(learned.calibrated, log_loss=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, learned, backbone_digest="f00d")


def test_files_are_json_and_safetensors_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_learned(), backbone_digest="f00d")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    content = json.loads((tmp_path / "model.json").read_text())["content"]
    assert content["class_names"] == ["ant", "käfer"]
    assert set(content["files"]) == {"head.safetensors", "out_of_fold.safetensors", "out_of_fold.json"}
