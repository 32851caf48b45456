"""What the benchmark of accuracy per label draws, charges, remembers and compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.domain import LabelledImage
from backend.labelled_folder import LabelledFolder
from benchmarks.image_sets import ImageSet
from benchmarks.learning_report import WHOLE_POOL, summarise
from benchmarks.learning_runs import Cost, FeatureMemory, Run, RunFile
from tests.factories import make_schema


def folder(prefix: str, *class_names: str, multiple: bool = False) -> LabelledFolder:
    return LabelledFolder(
        schema=make_schema(multiple=multiple),
        paths=tuple(Path(f"{prefix}{row}.jpg") for row in range(len(class_names))),
        labelled=tuple(
            LabelledImage(task_id=row, image_digest=f"{prefix}{row}", class_names=(name,))
            for row, name in enumerate(class_names)
        ),
    )


def image_set(*, multiple: bool = False) -> ImageSet:
    pool = folder("pool", *["cat"] * 8, *["dog"] * 6, multiple=multiple)
    return ImageSet(name="pets", pool=pool, test=folder("test", "cat", "dog", multiple=multiple))


def make_run(method: str, macro_f1: float, *, name: str = "pets", size: int = 5, seed: int = 1) -> Run:
    return Run(
        macro_f1=macro_f1,
        accuracy=macro_f1,
        ece=0.1,
        uncalibrated_ece=0.2,
        log_loss=1.0,
        wall_s=1.0,
        cpu_s=1.0,
        image_set=name,
        backbone="resnet18",
        n_per_class=size,
        seed=seed,
        method=method,
        n_labels=10,
        device="cpu",
        threads=1,
        load=0.0,
        finished_at="2026-01-01T00:00:00+00:00",
    )


class TestDraw:
    def test_so_many_of_each_class_and_the_rest_is_the_pool(self) -> None:
        split = image_set().draw(3, seed=1)
        assert sorted(image.class_names[0] for image in split.train.labelled) == ["cat"] * 3 + ["dog"] * 3
        assert set(split.train.paths) | set(split.pool) == set(image_set().pool.paths)
        assert not set(split.train.paths) & set(split.pool)

    def test_a_larger_draw_of_the_same_seed_contains_the_smaller(self) -> None:
        small, large = (set(image_set().draw(size, seed=2).train.paths) for size in (2, 4))
        assert small < large
        assert small != set(image_set().draw(2, seed=3).train.paths)

    def test_several_labels_are_drawn_from_all_alike_until_the_pool_ends(self) -> None:
        several = image_set(multiple=True)
        assert [len(several.draw(size, seed=1).train.paths) for size in (2, 5, 50)] == [4, 10, 14]


class TestFeatureMemory:
    def compute(self, paths: Sequence[Path]) -> NDArray[np.float64]:
        self.computed += paths
        return np.array([[float(path.stem[-1])] for path in paths])

    def test_computed_once_and_charged_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = iter(range(1000))
        monkeypatch.setattr("benchmarks.learning_runs.time.perf_counter", lambda: float(next(ticks)))
        monkeypatch.setattr("benchmarks.learning_runs.time.process_time", lambda: 0.0)
        self.computed: list[Path] = []
        split, memory = image_set().draw(2, seed=1), FeatureMemory()
        costs = []
        for _ in range(2):
            for paths in (split.train.paths, split.pool, split.test.paths):
                rows = memory.recall("net", paths, self.compute)
                assert rows[:, 0].tolist() == [float(path.stem[-1]) for path in paths]
            costs.append(memory.settle(Cost(10.0, 0.0), split))
        assert len(self.computed) == len(set(self.computed)) == 16
        # each of three calls takes one tick, the test part's is free, seven others remain of the ten
        assert costs[0] == (pytest.approx((9.0, 0.0)), pytest.approx(1.0))
        assert costs[0][0] == pytest.approx(costs[1][0])

    def test_an_unreadable_image_ends_the_benchmark(self) -> None:
        with pytest.raises(SystemExit, match="only 1 of 2 images"):
            FeatureMemory().recall("net", [Path("1"), Path("2")], lambda _: np.zeros((1, 1)))


class TestRunFile:
    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "results" / "learning.json"
        file = RunFile(path)
        file.runs += [make_run("logistic", 0.5), make_run("tandem", 0.6)]
        file.write({"date": "today"}, {})
        again = RunFile(path)
        assert again.runs == file.runs
        again.drop(["tandem"])
        assert [run.method for run in again.runs] == ["logistic"]


class TestSummary:
    def test_sets_count_alike_and_gains_are_paired(self) -> None:
        runs = [
            *(make_run("logistic", 0.5, seed=seed) for seed in (1, 2)),
            make_run("logistic", 0.9, name="tools"),
            *(make_run("tandem", 0.6, seed=seed) for seed in (1, 2)),
            make_run("tandem", 0.92, name="tools"),
            make_run("tandem", 0.1, name="tools", seed=9),
        ]
        rows = {row["method"]: row for row in summarise(runs)["per_size"]["5"]}
        assert rows["tandem"]["gain_in_points"] == pytest.approx((10 + 2) / 2)
        assert rows["logistic"]["macro_f1"] == pytest.approx((0.5 + 0.9) / 2)

    def test_the_best_other_method_is_the_measure(self) -> None:
        runs = [make_run("logistic", 0.5), make_run("fastai", 0.7), make_run("tandem", 0.6)]
        (row,) = summarise(runs)["against_the_best_other"]
        assert (row["best_other"], row["difference_in_points"]) == ("fastai", pytest.approx(-10))
        assert row["above_baseline_in_points"] == pytest.approx(10)

    def test_methods_are_held_against_each_other_on_the_runs_that_both_have(self) -> None:
        runs = [
            *(make_run("tandem", 0.6, seed=seed) for seed in (1, 2, 3)),
            *(make_run("logistic", 0.5, seed=seed) for seed in (1, 2, 3)),
            make_run("fastai", 0.2, seed=2),
            make_run("fastai", 0.9, seed=2, name="tools"),
        ]
        rows = {row["other"]: row for row in summarise(runs)["against_each_other"]}
        assert list(rows) == ["logistic", "fastai"]
        assert rows["logistic"]["difference_in_points"] == pytest.approx(10)
        assert rows["fastai"]["difference_in_points"] == pytest.approx(40)
        assert [(row["runs"], row["seeds"]) for row in rows.values()] == [(3, 3), (1, 1)]

    def test_the_whole_pool_only_checks_the_baseline(self) -> None:
        summary = summarise([make_run("logistic", 0.787, name="trash", size=WHOLE_POOL)])
        assert summary["per_size"] == {}
        assert summary["baseline_and_published"][0]["n_per_class"] == "whole pool"
