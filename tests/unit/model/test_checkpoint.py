import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import (
    CorruptCheckpoint,
    load_out_of_fold,
    load_predictor,
    load_version_report,
    save_checkpoint,
)
from model.conformal import Conformal, ConformalReport
from model.evaluation import evaluate
from model.head import Head
from model.inference import Predictor
from model.learned import Learned, OutOfFold
from model.logits import LinearMap
from model.opinion import Opinion
from model.reports import EmbeddingSettings, PoolSnapshot

EMBEDDING = EmbeddingSettings(backbone="resnet18", image_views=2, device="cpu", runtime="torch bfloat16")
POOL = PoolSnapshot.of(["e", "f"])


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
            conformal=Conformal(possible_from=(0.3, 0.2), certain_above=(0.8, 0.9) if multiple else None),
        ),
        method="pool",
        candidates=("pool", "labels"),
        seed=7,
        uncalibrated=report,
        calibrated=replace(report, ece=0.01),
        conformal=ConformalReport(n=4, coverage=1.0, mean_size=1.5, share_decided=0.5),
        out_of_fold=OutOfFold(digests=("a", "b", "c", "d"), probabilities=probabilities),
        seconds=0.5,
        pool=POOL,
    )


def with_opinion(learned: Learned) -> Learned:
    random = np.random.default_rng(5)
    layers = [
        LinearMap(weight=random.random((before, after)).astype(np.float32), bias=np.ones(after, np.float32))
        for before, after in ((3, 4), (4, 3))
    ]
    opinion = Opinion(layers=tuple(layers), groups=((0, 2), (1,)))
    return replace(learned, predictor=replace(learned.predictor, opinion=opinion, opinion_share=0.4))


def save(folder: Path, learned: Learned, **changes: Any) -> str:
    return save_checkpoint(folder, learned, **{"backbone_digest": "f00d", "snapshot": "5a", **changes})


@pytest.mark.parametrize("multiple", [False, True])
def test_all_that_was_saved_comes_back(tmp_path: Path, multiple: bool) -> None:
    learned = make_learned(multiple=multiple)
    digest = save(tmp_path, learned)
    assert len(digest) == 64
    features = np.random.default_rng(1).random((3, 5)).astype(np.float16)
    predictor = load_predictor(tmp_path)
    np.testing.assert_array_equal(predictor.predict_proba(features), learned.predictor.predict_proba(features))
    assert predictor.suggest(features) == learned.predictor.suggest(features)
    np.testing.assert_array_equal(predictor.prediction_sets(features), learned.predictor.prediction_sets(features))
    assert predictor.conformal == learned.predictor.conformal
    assert predictor.backbone_digest == "f00d"
    remembered = load_out_of_fold(tmp_path)
    assert remembered.digests == learned.out_of_fold.digests
    np.testing.assert_array_equal(remembered.probabilities, learned.out_of_fold.probabilities)


@pytest.mark.parametrize("multiple", [False, True])
def test_the_report_comes_back_whole(tmp_path: Path, multiple: bool) -> None:
    learned = make_learned(multiple=multiple)
    config = {"epochs": 5, "learning_rate": 2e-4, "seed": 0}
    save(tmp_path, learned, embedding=EMBEDDING, finetuning=config, finetuning_s=61.5, embedding_s=7.5)
    report = load_version_report(tmp_path)
    assert (report.uncalibrated, report.calibrated) == (learned.uncalibrated, learned.calibrated)
    assert (report.conformal, report.conformal_report) == (learned.predictor.conformal, learned.conformal)
    assert (report.temperature, report.thresholds) == (0.7, learned.predictor.thresholds)
    assert (report.class_names, report.multiple) == (("ant", "käfer"), multiple)
    assert (report.method, report.candidates, report.seed) == ("pool", ("pool", "labels"), 7)
    assert (report.backbone_digest, report.block_sizes, report.snapshot) == ("f00d", (2, 3), "5a")
    assert report.finetuning == config
    assert (report.embedding, report.pool) == (EMBEDDING, POOL)
    assert report.timings_s == {"learn": 0.5, "finetune": 61.5, "embed": 7.5}
    assert report.libraries["numpy"] == np.__version__
    # OpenVINO is optional, but installed where these tests run
    assert {"python", "scipy", "safetensors", "openvino"} <= set(report.libraries)


def test_a_network_that_was_not_trained_has_no_such_settings(tmp_path: Path) -> None:
    save(tmp_path, make_learned())
    report = load_version_report(tmp_path)
    assert report.finetuning is None
    assert report.embedding is None
    assert report.timings_s == {"learn": 0.5}


def test_a_checkpoint_of_before_pool_and_embedding_were_told_stays_readable(tmp_path: Path) -> None:
    save(tmp_path, make_learned(), embedding=EMBEDDING)
    stored = json.loads((tmp_path / "model.json").read_text())
    del stored["content"]["pool"], stored["embedding"]
    canonical = json.dumps(stored["content"], sort_keys=True, separators=(",", ":"))
    stored["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (tmp_path / "model.json").write_text(json.dumps(stored))
    report = load_version_report(tmp_path)
    assert (report.pool, report.embedding) == (None, None)


def test_a_pool_is_known_by_its_images_in_whatever_order() -> None:
    assert PoolSnapshot.of(["e", "f"]) == PoolSnapshot.of(["f", "e"]) != PoolSnapshot.of(["e", "g"])
    assert PoolSnapshot.of(["e", "f"]).n_images == 2


def test_equal_contents_have_equal_digests_and_others_have_others(tmp_path: Path) -> None:
    learned = make_learned()
    digests = []
    for name, made, changes in (
        ("first", learned, {}),
        ("slower", replace(learned, seconds=9.0), {"finetuning_s": 3.0, "embedding_s": 1.0, "embedding": EMBEDDING}),
        ("backbone", learned, {"backbone_digest": "beef"}),
        ("labels", learned, {"snapshot": "5b"}),
        ("pool", replace(learned, pool=PoolSnapshot.of(["e"])), {}),
        ("seed", replace(learned, seed=8), {}),
        ("training", learned, {"finetuning": {"epochs": 5}}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        digests.append(save(folder, made, **changes))
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(digests) - 1


ABSURD = [
    (("calibrated", "accuracy"), 1.5),
    (("calibrated", "macro_f1"), -0.1),
    (("uncalibrated", "log_loss"), 1e999),
    (("uncalibrated", "brier"), "much"),
    (("calibrated", "n"), 5),
    (("calibrated", "n"), -4),
    (("calibrated", "reliability", "counts"), [4]),
    (("calibrated", "reliability", "counts", 0), 0.5),
    (("calibrated", "reliability", "confidences", 0), 2),
    (("calibrated", "per_class"), []),
    (("calibrated", "per_class", 0, "support"), None),
    (("calibrated", "confusion"), None),
    (("calibrated", "confusion"), [[1, 2]]),
    (("calibrated", "confusion", 0, 1), -1),
    (("conformal_report", "coverage"), 1.01),
    (("conformal_report", "mean_size"), -1),
    (("conformal", "alpha"), 0),
    (("conformal", "possible_from", 0), 1.1),
    (("seed",), "seven"),
    (("temperature",), -1),
    (("block_sizes",), ["two"]),
    (("finetuning",), [5]),
    (("finetuning",), {"epochs": [5]}),
    (("libraries",), None),
    (("pool", "n_images"), -1),
    (("pool",), [2]),
]


@pytest.mark.parametrize(("steps", "value"), ABSURD)
def test_absurd_figures_are_found_even_with_right_checksums(
    tmp_path: Path, steps: tuple[str | int, ...], value: object
) -> None:
    save(tmp_path, make_learned())
    path = tmp_path / "model.json"
    wrapped = json.loads(path.read_text())
    place = wrapped["content"]
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = value
    canonical = json.dumps(wrapped["content"], sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(wrapped | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}))
    with pytest.raises(CorruptCheckpoint):
        load_version_report(tmp_path)


@pytest.mark.parametrize("timings_s", [None, {"learn": -1}, {"learn": "long"}, []])
def test_absurd_timings_are_found(tmp_path: Path, timings_s: object) -> None:
    save(tmp_path, make_learned())
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timings_s": timings_s}))
    with pytest.raises(CorruptCheckpoint):
        load_version_report(tmp_path)


@pytest.mark.parametrize("embedding", [[], {"backbone": "resnet18"}, {**asdict(EMBEDDING), "image_views": "two"}])
def test_absurd_embeddings_are_found(tmp_path: Path, embedding: object) -> None:
    save(tmp_path, make_learned())
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"embedding": embedding}))
    with pytest.raises(CorruptCheckpoint):
        load_version_report(tmp_path)


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
    save(tmp_path, make_learned())
    damaged(tmp_path, name, damage)
    for load in (load_predictor, load_out_of_fold, load_version_report):
        with pytest.raises(CorruptCheckpoint):
            load(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", '{"content": 1, "sha256": ""}', '{"content": {}, "sha256": 5}', "[" * 100_000, '{"a": NaN}'],
)
def test_json_that_is_something_else_is_found(tmp_path: Path, content: str) -> None:
    save(tmp_path, make_learned())
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
    save(tmp_path, learned)
    with pytest.raises(CorruptCheckpoint):
        load_predictor(tmp_path)


def test_a_figure_that_is_not_a_number_is_never_saved(tmp_path: Path) -> None:
    learned = make_learned()
    learned = replace(learned, calibrated=replace(learned.calibrated, log_loss=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, learned)


def test_files_are_json_and_safetensors_only(tmp_path: Path) -> None:
    save(tmp_path, make_learned())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    content = json.loads((tmp_path / "model.json").read_text())["content"]
    assert content["class_names"] == ["ant", "käfer"]
    assert set(content["files"]) == {"head.safetensors", "out_of_fold.safetensors", "out_of_fold.json"}


class TestOpinion:
    def test_it_comes_back_with_its_share(self, tmp_path: Path) -> None:
        learned = with_opinion(make_learned())
        save(tmp_path, learned)
        features = np.random.default_rng(1).random((3, 5)).astype(np.float16)
        probabilities = load_predictor(tmp_path).predict_proba(features)
        np.testing.assert_array_equal(probabilities, learned.predictor.predict_proba(features))
        assert np.abs(probabilities - make_learned().predictor.predict_proba(features)).max() > 0.01
        assert load_version_report(tmp_path).opinion_share == 0.4

    @pytest.mark.parametrize("damage", [b"", b"no arrays"])
    def test_a_damaged_one_is_noticed(self, tmp_path: Path, damage: bytes) -> None:
        save(tmp_path, with_opinion(make_learned()))
        (tmp_path / "opinion.safetensors").write_bytes(damage)
        with pytest.raises(CorruptCheckpoint, match=r"opinion\.safetensors"):
            load_predictor(tmp_path)

    def test_checkpoints_of_before_there_were_any_have_none(self, tmp_path: Path) -> None:
        save(tmp_path, make_learned())
        stored = json.loads((tmp_path / "model.json").read_text())
        del stored["content"]["opinion"], stored["content"]["opinion_share"]
        canonical = json.dumps(stored["content"], sort_keys=True, separators=(",", ":"))
        stored["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
        (tmp_path / "model.json").write_text(json.dumps(stored))
        assert load_predictor(tmp_path).opinion is None
        assert load_version_report(tmp_path).opinion_share == 0.0
