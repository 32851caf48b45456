"""The command ``tandem``."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from backend.background_process import free_port
from backend.cli import app, main
from backend.domain import AnnotationsSeen, JobKind, JobStatus, VersionStatus
from backend.promotion import version_key
from tests.factories import NOON, make_annotation
from tests.world import PROJECT, World, pets

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands switch the logs of the whole process; here they would end up in what the tests read."""
    monkeypatch.setattr("backend.commands.context.configure_logs", lambda *_, **__: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture
def model_dir(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """What the commands find in MODEL_DIR: a project, at first without a version."""
    monkeypatch.setenv("MODEL_DIR", str(world.folder))
    world.see_tasks(pets(12))
    return world


def run_json(*arguments: str) -> Any:
    result = RUNNER.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def run_text(*arguments: str) -> str:
    result = RUNNER.invoke(app, [*arguments], catch_exceptions=False, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command as a terminal would; return its exit status and what it says on standard error."""
    monkeypatch.setattr(sys, "argv", ["tandem", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.err


def test_help_names_every_command_without_loading_anything_heavy() -> None:
    result = RUNNER.invoke(app, ["--help"])
    names = "serve worker sync train predict versions rollback status fit simulate demo"
    for command in names.split():
        assert command in result.stdout


class TestStatus:
    def test_of_all_projects(self, model_dir: World) -> None:
        model_dir.learn(pets(12))
        (project,) = run_json("status")
        assert project["active_version"] == model_dir.active.name
        assert (project["n_tasks"], project["n_labels"]) == (12, 12)
        text = run_text("status")
        assert "Pets" in text
        assert model_dir.active.name in text

    def test_before_the_first_version_it_tells_what_is_known_by_name(self, model_dir: World) -> None:
        model_dir.embedder.categories = ("cat", "Dog", "fly")
        model_dir.embed()
        assert run_json("status")[0]["pretrained"]["classes"] == {"cat": ["cat"], "dog": ["Dog"]}
        assert "cat: cat; dog: Dog" in run_text("status")
        model_dir.learn(pets(12))
        assert run_json("status")[0]["pretrained"] is None

    def test_titles_may_hold_anything(self, model_dir: World) -> None:
        model_dir.ingestion.setup(replace(model_dir.snapshot, title="Cats [/bold] [red]"))
        assert "Cats [/bold] [red]" in run_text("status")

    def test_is_readable_on_a_hundred_columns(self, model_dir: World) -> None:
        model_dir.learn(pets(12))
        problem = "Tandem cannot reach Label Studio at http://label-studio.example.org:8080: the token lost its rights"
        with model_dir.database.transaction() as stores:
            stores.projects.save(replace(stores.projects.get(PROJECT), problems=(problem,)))
        result = RUNNER.invoke(app, ["status"], catch_exceptions=False, env={"COLUMNS": "100"})
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 100
        (numbers,) = (line for line in lines if model_dir.active.name in line)
        assert "Pets" in numbers
        assert re.sub(r"[│\s]+", " ", result.stdout).count(problem) == 1

    def test_before_there_is_any_project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL_DIR", str(tmp_path / "new"))
        assert run_json("status") == []
        assert run_text("status") == "nothing yet"


class TestDoctor:
    """What it finds is in ``services/test_diagnosis.py`` and ``integration/test_doctor.py``."""

    @pytest.fixture(autouse=True)
    def _without_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WEIGHTS", "none")
        monkeypatch.setenv("PORT", str(free_port()))

    def examine(self) -> tuple[int, dict[str, Any]]:
        result = RUNNER.invoke(app, ["doctor", "--json"], catch_exceptions=False)
        told = json.loads(result.stdout)
        assert set(told) == {"ok", "checks"}
        for check in told["checks"]:
            assert set(check) == {"check", "status", "found", "remedy", "project"}
            assert check["status"] in ("ok", "warning", "failed", "skipped")
            assert check["remedy"] or check["status"] in ("ok", "skipped")
        return result.exit_code, told

    def test_as_json(self, model_dir: World) -> None:
        assert model_dir.project.id == PROJECT
        status, told = self.examine()
        assert (status, told["ok"]) == (1, False)
        by_name = {check["check"]: check for check in told["checks"]}
        assert by_name["label studio url"]["status"] == "failed"
        assert by_name["label config"] == {
            "check": "label config",
            "status": "ok",
            "found": "2 classes of <Choices name='choice'>",
            "remedy": "",
            "project": PROJECT,
        }

    def test_as_text(self, model_dir: World) -> None:
        assert model_dir.project.id == PROJECT
        result = RUNNER.invoke(app, ["doctor"], catch_exceptions=False, env={"COLUMNS": "80"})
        assert result.exit_code == 1
        assert "✗ label studio url LABEL_STUDIO_URL is not set\n" in result.stdout
        assert "→ set LABEL_STUDIO_URL to where Label Studio is, as this machine reaches it\n" in result.stdout
        assert "\nproject 5\n✓ label config" in result.stdout
        assert re.search(r"\d+ ok, \d+ warning, \d+ failed, \d+ skipped\n$", result.stdout)

    def test_before_the_first_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL_DIR", str(tmp_path / "new"))
        _, told = self.examine()
        by_name = {check["check"]: check["status"] for check in told["checks"]}
        assert by_name["database"] == "warning"
        assert by_name["projects"] == by_name["worker"] == "skipped"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("PORT", "many"), ("DATABASE_URL", "mysql://user:never-show-this@host/name"), ("LABEL_STUDIO_API_KEY", "key")],
    )
    def test_settings_that_cannot_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv("MODEL_DIR", str(tmp_path))
        monkeypatch.setenv(name, value)
        status, told = self.examine()
        (check,) = told["checks"]
        assert (status, check["check"], check["status"]) == (1, "settings", "failed")
        assert name in check["found"]
        assert "never-show-this" not in check["found"]

    @pytest.mark.usefixtures("model_dir")
    def test_no_secret_is_ever_printed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        secrets = {
            "LABEL_STUDIO_API_KEY": "aaaa.never-show-this.bbbb",
            "BASIC_AUTH_PASS": "never-show-this-password",
            "WEBHOOK_SECRET": "never-show-this-secret",
            "DATABASE_URL": "postgresql://tandem:never-show-this@127.0.0.1:1/tandem",
        }
        for name, value in {**secrets, "BASIC_AUTH_USER": "tandem", "PUBLIC_URL": "http://127.0.0.1:1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
        for options in ([], ["--json"]):
            result = RUNNER.invoke(app, ["doctor", *options], catch_exceptions=False)
            assert "postgresql" in result.output
            assert "never-show-this" not in result.output


class TestVersions:
    def test_are_listed_newest_first(self, model_dir: World) -> None:
        model_dir.learn(pets(8))
        model_dir.learn(pets(12))
        listed = run_json("versions", "5")
        assert [version["n_labels"] for version in listed] == [12, 8]
        assert listed[0]["metrics"]["accuracy"] > 0.5
        text = run_text("versions", "5")
        assert listed[0]["version"] in text
        assert "first version of the project" in text

    def test_rollback(self, model_dir: World) -> None:
        first = model_dir.learn(pets(8))
        model_dir.learn(pets(12))
        (active,) = run_json("rollback", "5", first.name)
        assert (active["version"], active["status"]) == (first.name, "active")
        assert model_dir.active.name == first.name
        assert first.name in run_text("rollback", "5", first.name)

    def test_forget(self, model_dir: World) -> None:
        model_dir.learn(pets(8))
        asked = RUNNER.invoke(app, ["forget", "5"], input="n\n")
        assert asked.exit_code == 1
        assert "project 5 'Pets': 12 tasks, 8 labels, all versions?" in asked.output
        assert len(run_json("versions", "5")) == 1
        assert "forgotten: project 5" in run_text("forget", "5", "--yes")
        assert run_json("status") == []

    def test_rollback_to_what_is_not_there(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = model_dir.learn(pets(8))
        status, said = fails(monkeypatch, capsys, "rollback", "5", "p5-v9-[/nothing]")
        assert status == 1
        assert "p5-v9-[/nothing]" in said
        model_dir.artifacts.delete(version_key(PROJECT, first.name))
        assert fails(monkeypatch, capsys, "rollback", "5", first.name)[0] == 1
        assert model_dir.active == first


class TestReview:
    def test_suspect_labels(self, model_dir: World) -> None:
        model_dir.label(pets(12) | {7: "cat"})
        model_dir.embed()
        model_dir.fit()
        review = run_json("suspects", "5")
        assert review["suspects"][0]["task"] == 7
        assert review["n_checked"] == 12
        text = run_text("suspects", "5", "--limit", "1")
        assert "7 │ cat │ dog" in text
        assert "of 12 labels are suspect" in text
        assert "annotators" not in text
        model_dir.unlabel(7)
        opinions = tuple(
            make_annotation(200 + task_id, task_id, "cat", updated_at=NOON, annotator_id=2) for task_id in (1, 2)
        )
        model_dir.ingestion.handle(AnnotationsSeen(project=model_dir.snapshot, tasks=(), annotations=opinions))
        assert "annotators agree on 50% of the 2 tasks" in run_text("suspects", "5")

    def test_forecast(self, model_dir: World) -> None:
        model_dir.learn(pets(8))
        model_dir.learn(pets(12))
        forecast = run_json("forecast", "5")
        assert (forecast["n_labels"], forecast["n_more"]) == (12, 50)
        assert run_text("forecast", "5") == forecast["summary"]

    def test_images_that_repeat_others_and_odd_ones(self, model_dir: World) -> None:
        model_dir.see_tasks(pets(60) | {200: "lighthouse"})
        copy, _ = model_dir.see_tasks({201: "copy", 202: "buoy"})
        model_dir.images.contents[copy.image_url or ""] = b"buoy 202"
        model_dir.embed()
        pool = run_json("pool", "5")
        assert {"tasks": [201, 202], "open": [201, 202]} in pool["duplicates"]
        assert 200 in [outlier["task"] for outlier in pool["outliers"]]
        text = run_text("pool", "5")
        assert "201, 202 │ 201, 202" in text
        assert "200" in text
        assert f"distance (usual: {pool['usual_distance']:.2g})" in text
        assert pool["summary"] in text.replace("\n", " ")
        assert len(run_json("pool", "5", "--limit", "1")["duplicates"]) == 1

    def test_before_any_image_is_embedded(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert model_dir.project.id == PROJECT
        status, said = fails(monkeypatch, capsys, "pool", "5")
        assert status == 1
        assert "no image of project 5 is embedded yet" in said

    def test_before_there_is_a_version(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert model_dir.project.id == PROJECT
        for command in ("suspects", "forecast"):
            status, said = fails(monkeypatch, capsys, command, "5")
            assert status == 1
            assert "no version yet: label some more images" in said


class TestJobs:
    def test_train_without_waiting(self, model_dir: World) -> None:
        job = run_json("train", "5", "--no-wait", "--kind", "finetune")
        assert (job["kind"], job["status"], job["project_id"]) == ("finetune", "queued", 5)
        assert model_dir.queued(JobKind.FINETUNE) is not None
        assert "head job" in run_text("train", "5", "--no-wait")

    def test_sync_without_waiting(self, model_dir: World) -> None:
        assert run_json("sync", "5", "--no-wait")["kind"] == "sync"
        assert model_dir.queued(JobKind.SYNC) is not None

    @pytest.mark.parametrize(("outcome", "exit_code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 1)])
    def test_waiting_for_the_end(self, model_dir: World, outcome: JobStatus, exit_code: int) -> None:
        model_dir.finish_jobs()

        def work() -> None:
            job = None
            while job is None:
                time.sleep(0.05)
                with model_dir.database.transaction() as stores:
                    later = model_dir.clock.now().replace(year=2100)
                    job = stores.jobs.claim([JobKind.HEAD], "test", later, later)
            with model_dir.database.transaction() as stores:
                stores.jobs.finish(job.id, "test", outcome, "that is [why]", later)

        worker = threading.Thread(target=work)
        worker.start()
        result = RUNNER.invoke(app, ["train", "5"])
        worker.join()
        assert result.exit_code == exit_code
        assert f"{outcome.value}, that is [why]" in result.stdout


class TestErrors:
    def test_unknown_projects(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert model_dir.project.id == PROJECT
        for command in ("train", "sync", "versions", "suspects", "forecast", "pool"):
            status, said = fails(monkeypatch, capsys, command, "99")
            assert status == 1
            assert said.startswith("tandem: there is no project 99")

    def test_a_folder_that_cannot_be_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MODEL_DIR", str(tmp_path / "file" / "data"))
        status, said = fails(monkeypatch, capsys, "status")
        assert status == 2
        assert f"cannot be written to by user {os.getuid()}" in said
        assert "change its owner or set MODEL_DIR" in " ".join(said.split())

    def test_wrong_settings_are_all_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PORT", "many")
        monkeypatch.setenv("BASIC_AUTH_USER", "tandem")
        status, said = fails(monkeypatch, capsys, "status")
        assert status == 2
        assert "PORT" in said

    def test_files_that_are_not_there(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = fails(monkeypatch, capsys, "predict", "5", str(model_dir.folder / "none.jpg"))
        assert status == 2
        assert "none.jpg is not a file" in said

    @pytest.mark.parametrize("trained", [False, True])
    def test_suggestions_need_a_version_and_the_embedder(
        self, model_dir: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: bool
    ) -> None:
        if trained:
            assert model_dir.learn(pets(8)).status is VersionStatus.ACTIVE
        image = model_dir.folder / "1.png"
        image.write_bytes(b"cat 1")
        status, said = fails(monkeypatch, capsys, "predict", "5", str(image))
        assert status == 1
        assert ("is tandem serve running?" if trained else "has no version yet") in said


def test_suggestions_for_files(model_dir: World, monkeypatch: pytest.MonkeyPatch) -> None:
    active = model_dir.learn(pets(12))
    monkeypatch.setattr("backend.bootstrap.Container.embedder", model_dir.embedder)
    files = [model_dir.folder / f"{number}.png" for number in (1, 2)]
    for path, content in zip(files, (b"dog 1", b"broken"), strict=True):
        path.write_bytes(content)
    dog, broken = run_json("predict", "5", *map(str, files))
    assert (dog["labels"], dog["version"]) == (["dog"], active.name)
    assert 0.5 < dog["score"] <= 1
    assert broken == {"file": str(files[1]), "labels": [], "score": None, "reason": "not an image"}
    assert "not an image" in run_text("predict", "5", *map(str, files))


# --- fit -----------------------------------------------------------------------------------------------------------


def draw(folder: Path, n: int, seed: int = 0) -> Path:
    """Noisy red and blue squares, a sub-folder each."""
    random = np.random.default_rng(seed)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(n):
            pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("BACKBONE", "resnet18")
    monkeypatch.setenv("WEIGHTS", "none")
    monkeypatch.setenv("DEVICE", "cpu")
    return tmp_path


@pytest.mark.slow
class TestFit:
    def test_a_folder_with_a_test_folder_and_a_pool(self, untrained: Path) -> None:
        train, test, pool = (draw(untrained / name, n, seed=n) for name, n in (("train", 8), ("test", 10), ("pool", 6)))
        result = run_json("fit", str(train), "--test", str(test), "--pool", str(pool), "--seed", "3")
        assert set(result["metrics"]) == {
            "accuracy",
            "macro_precision",
            "macro_recall",
            "macro_f1",
            "log_loss",
            "brier",
            "ece",
        }
        assert set(result["uncalibrated"]) == {"ece", "log_loss"}
        assert set(result["seconds"]) == {"embed", "head", "finetune", "total"}
        assert (result["kind"], result["n_labels"], result["n_test"]) == ("head", 16, 20)
        assert result["metrics"]["accuracy"] > 0.8
        assert result["seconds"]["finetune"] == 0
        again = run_json("fit", str(train), "--test", str(test), "--pool", str(pool), "--seed", "3")
        assert again["metrics"] == result["metrics"]

    def test_a_fifth_is_held_out_without_a_test_folder(self, untrained: Path) -> None:
        result = run_json("fit", str(draw(untrained / "train", 15)))
        assert result["n_labels"] + result["n_test"] == 30
        assert result["n_test"] > 0

    def test_no_image_is_measured_on_whose_double_was_learned_from(self, untrained: Path) -> None:
        # Labels that mean nothing: who gets them right has seen the double.
        random = np.random.default_rng(0)
        for number in range(60):
            folder = untrained / "train" / ("red", "blue")[random.integers(2)]
            folder.mkdir(parents=True, exist_ok=True)
            tiles = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            for size in (64, 62):
                tiles.resize((size, size), Image.Resampling.NEAREST).save(folder / f"{number} {size}.png")
        result = run_json("fit", str(untrained / "train"))
        assert result["n_test"] == pytest.approx(24, abs=2)
        assert result["metrics"]["accuracy"] < 0.75

    def test_several_labels_per_image(self, untrained: Path) -> None:
        folder = draw(untrained / "train", 12)
        lines = [f"{name}/{n}.png,{name}" + ("|even" if n % 2 else "") for name in ("red", "blue") for n in range(12)]
        (folder / "labels.csv").write_text("\n".join(["file,labels", *lines]))
        result = run_json("fit", str(folder))
        assert result["class_names"] == ["blue", "even", "red"]
        assert 0 <= result["metrics"]["macro_f1"] <= 1

    def test_an_unreadable_image_costs_only_itself(self, untrained: Path) -> None:
        folder = draw(untrained / "train", 15)
        (folder / "red" / "0.png").write_bytes(b"not an image")
        result = run_json("fit", str(folder))
        assert result["metrics"]["accuracy"] > 0.5

    def test_the_network_is_fine_tuned_when_there_are_enough_labels(
        self, untrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from model.training import TrainingConfig

        monkeypatch.setenv("FINETUNE_MIN_LABELS", "24")
        short = replace(TrainingConfig.for_labels(30, 2), epochs=2)
        monkeypatch.setattr(TrainingConfig, "for_labels", lambda *_, **__: short)
        train, test = draw(untrained / "train", 15, seed=1), draw(untrained / "test", 8, seed=2)
        result = run_json("fit", str(train), "--test", str(test))
        assert result["seconds"]["finetune"] > 0
        assert result["kind"] in ("head", "finetune")
        assert result["metrics"]["accuracy"] > 0.8

    def test_as_text(self, untrained: Path) -> None:
        text = run_text("fit", str(draw(untrained / "train", 10)))
        assert "accuracy" in text
        assert "labels" in text

    def test_nothing_to_learn(
        self, untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = fails(monkeypatch, capsys, "fit", str(untrained / "nowhere"))
        assert status == 2
        assert "nowhere" in said

    def test_a_pool_that_is_not_there(
        self, untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train = str(draw(untrained / "train", 10))
        status, said = fails(monkeypatch, capsys, "fit", train, "--pool", str(untrained / "typo"))
        assert status == 2
        assert "typo is no folder with images" in said


@pytest.mark.slow
class TestSimulate:
    def test_strategies_are_compared_with_random(self, untrained: Path) -> None:
        files = untrained / "table.json", untrained / "curve.png"
        text = run_text(
            *("simulate", str(draw(untrained / "squares", 12)), "--strategies", "margin,typicality"),
            *("--seeds", "2", "--budgets", "4,8", "--budgets", "16"),
            *("--output", str(files[0]), "--figure", str(files[1])),
        )
        assert "labels ┃ random ┃ margin ┃ typicality" in text
        assert "held-out images of 24, mean of 2 replays with a new model every 5 labels" in text
        written = json.loads(files[0].read_text())
        assert (written["class_names"], written["n_images"], written["seeds"]) == (["blue", "red"], 24, 2)
        assert written["n_test"] in (7, 8)
        assert [curve["strategy"] for curve in written["curves"]] == ["random", "margin", "typicality"]
        assert [saving["strategy"] for saving in written["savings"]] == ["random", "margin", "typicality"]
        for curve in written["curves"]:
            assert (curve["set_name"], curve["backbone"], curve["n_labels"]) == ("squares", "resnet18", [4, 8, 16])
            assert [len(row) for row in curve["accuracy"]] == [3, 3]
            assert np.mean(curve["accuracy"], axis=0)[-1] > 0.8
        with Image.open(files[1]) as drawn:
            assert min(drawn.size) > 300

    def test_the_same_folder_gives_the_same_table(self, untrained: Path) -> None:
        folder = draw(untrained / "squares", 8)
        arguments = ("simulate", str(folder), "--seeds", "1", "--test-share", "0.5")
        first, second = run_json(*arguments), run_json(*arguments)
        assert [curve["strategy"] for curve in first["curves"]] == ["random", "tandem"]
        assert [curve["n_labels"] for curve in first["curves"]] == [[2, 4, 6]] * 2
        for curve in (*first["curves"], *second["curves"]):
            curve.pop("seconds")
        assert first == second

    def test_without_matplotlib_there_is_a_table_and_a_word_on_how_to_get_it(
        self, untrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        figure = untrained / "curve.png"
        arguments = ("simulate", str(draw(untrained / "squares", 8)), "--seeds", "1", "--figure", str(figure))
        result = RUNNER.invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "300"})
        assert result.exit_code == 0
        assert "pip install 'tandem-label-studio[plots]'" in result.stderr
        assert "labels" in result.stdout
        assert not figure.exists()

    def test_too_few_images(
        self, untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = fails(monkeypatch, capsys, "simulate", str(draw(untrained / "squares", 1)))
        assert status == 1
        assert "too few images of 2 classes: 1 of 2 readable images are held out" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere",), "nowhere is not a folder"),
        (("squares", "--strategies", "random,best"), "no query strategy 'best': it must be one of tandem"),
        (("squares", "--budgets", "4,many"), "'many' is not a number of labels"),
        (("squares", "--output", "nowhere/table.json"), "cannot be written"),
        (("squares", "--figure", "squares"), "cannot be written"),
        (("squares", "--figure", "curve.docx"), "curve.docx is neither"),
    ],
)
def test_what_cannot_be_simulated(
    untrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    draw(untrained / "squares", 2)
    monkeypatch.chdir(untrained)
    status, said = fails(monkeypatch, capsys, "simulate", *arguments)
    assert status == 2
    assert reason in said
