"""The benchmark of growth measures what it says, on a few images."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import product

import pytest

from benchmarks import growth


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "alone", lambda measure, *arguments: measure(*arguments))
    monkeypatch.setattr(growth, "N_POOL", 50)


def test_everything_is_measured_at_each_size(tmp_path):
    measured = list(growth.run([100, 300], [40], [4, 50], tmp_path))
    store = {"store all", "store 64 more", "open the store", "look up 64", "compact to half"}
    assert {each.what for each in measured} == {*store, "fit a head", "score the pool", "open, read and score"}
    for what in store:
        sizes = [(each.n_images, each.n_features) for each in measured if each.what == what]
        assert sizes == [(100, 512), (100, 1112), (300, 512), (300, 1112)]
    assert [(each.n_images, each.n_classes) for each in measured if each.what == "fit a head"] == [(40, 4)]
    for what in ("score the pool", "open, read and score"):
        scored = [(each.n_images, each.n_features, each.n_classes) for each in measured if each.what == what]
        assert scored == list(product([100, 300], [512, 1112], [4, 50]))
    assert all(each.cpu_s >= 0 and each.wall_s > 0 and each.peak_bytes > 1e6 for each in measured)
    assert list(tmp_path.iterdir()) == []


def test_the_result_is_written_and_shown(tmp_path, monkeypatch, capsys):
    output = tmp_path / "growth.json"
    options = ["--images", "50", "--labels", "20", "--classes", "3", "--folder", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["growth.py", *options])
    growth.main()
    written = json.loads(output.read_text())
    assert "--images 50 --labels 20 --classes 3" in written["command"]
    assert len(written["results"]) == 15
    assert "fit a head, 1112 features, 3 classes" in capsys.readouterr().out
    assert str(tmp_path) not in output.read_text()


def test_the_last_step_is_compared_with_linear_growth():
    def costing(n_images: int, cpu_s: float) -> growth.Measurement:
        seconds = growth.Seconds(cpu_s, 9.0)
        return growth.measurement("store all", n_images, None, (8,), seconds)

    by_size = {each.n_images: each for each in (costing(1000, 3.0), costing(10, 1.0), costing(100, 2.0))}
    assert growth.last_step(by_size) == pytest.approx(0.15)
    assert asdict(by_size[10])["wall_s"] == 9.0
