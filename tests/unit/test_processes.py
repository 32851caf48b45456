"""Where processes meet, and that none outlives its parent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from backend.errors import ConfigurationError
from backend.processes import embedder_address, runtime_folder

CHILD = """
import time
from backend.processes import exit_with_parent
exit_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_processes_that_share_a_folder_meet_in_private(tmp_path: Path) -> None:
    folder = runtime_folder(tmp_path / "data")
    assert folder == runtime_folder(tmp_path / "data")
    assert folder != runtime_folder(tmp_path / "other")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_socket_has_a_short_path_however_long_that_of_the_data_is(tmp_path: Path) -> None:
    address = embedder_address(tmp_path / ("very-long-name" * 10))
    assert len(str(address)) - len(str(tmp_path)) < 60


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    runtime_folder(tmp_path / "data").chmod(0o755)
    with pytest.raises(ConfigurationError, match="not ours alone"):
        runtime_folder(tmp_path / "data")


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = runtime_folder(tmp_path / "data")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="not ours alone"):
        runtime_folder(tmp_path / "data")


def test_an_orphan_ends() -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, timeout=60, check=True
    )
    stat = Path(f"/proc/{int(parent.stdout)}/stat")
    deadline_s = time.monotonic() + 20
    # a zombie has ended too: whoever adopted it has not looked yet
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
