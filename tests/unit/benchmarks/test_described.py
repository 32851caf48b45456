"""Every result of a benchmark says when, how, and on what it was measured."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

from benchmarks import described

SCRIPTS = sorted(Path(described.__file__).parent.glob("*.py"))


def test_all_that_one_must_know_is_there() -> None:
    found = described.described("numpy", "no-such-package", threads=1)
    assert set(found) == {"date", "command", "commit", "machine", "versions"}
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"]
    assert found["versions"]["no-such-package"] is None
    assert found["machine"]["threads"] == 1
    assert found["machine"]["processors"] >= 1


def test_the_command_names_files_but_not_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--output", "/home/somebody/results/growth.json", "--folder=/mnt/a b", "--images", "1000", "kind=x"]
    monkeypatch.setattr(sys, "argv", ["/home/somebody/growth.py", *arguments])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    expected = "python benchmarks/growth.py --output growth.json '--folder=a b' --images 1000 kind=x"
    assert described.command() == expected


def test_the_processor_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "CPU_INFO", tmp_path / "cpuinfo")
    assert described.processor()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Xeon: the second\nflags\t\t: avx\n")
    assert described.processor() == "Xeon: the second"


def test_a_folder_that_git_does_not_know_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "__file__", str(tmp_path / "described.py"))
    assert described.commit() is None
    monkeypatch.setenv("PATH", "")
    assert described.commit() is None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_whatever_writes_a_result_describes_it(script: Path) -> None:
    source = script.read_text()
    if re.search(r'"(-o|--output)"', source):
        assert re.search(r"\bdescribed\(", source)
    if script.stem != "described":
        assert "platform." not in source
