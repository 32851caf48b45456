"""The benchmark of speed on a GPU runs, and measures what it says, on a few images and the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.slow


def test_the_rates_are_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    sizes = ["--images", "4", "--batch-size", "2", "--rounds", "1"]
    options = ["--device", "cpu", "--backbones", "shufflenet_v2_x0_5", *sizes, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    gpu.main()
    written = json.loads(output.read_text())
    assert written["machine"]["device"] == "cpu"
    assert [(each["work"], each["batch_size"]) for each in written["rates"]] == [("embed", 4), ("train", 2)]
    for each in written["rates"]:
        assert each["share_decoded"] == pytest.approx(each["decoded"] / each["bare"])
        assert each["share_files"] == pytest.approx(each["files"] / min(each["bare"], each["decoding"]))
    assert written["memory"] == []
    assert "Images per second" in capsys.readouterr().out
    assert str(tmp_path) not in output.read_text()
