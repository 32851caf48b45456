"""Where processes meet, and that none outlives its parent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from backend.errors import ConfigurationError
from backend.processes import counts_folder, embedder_address, runtime_folder

CHILD = """
import time
from io import BytesIO
from backend.processes import exit_with_parent
exit_with_parent()
print("up", flush=True)
time.sleep(60)
"""
SLOW_CHILD = """
import os, time
from backend.processes import exit_with_parent
parent = os.getppid()
print("up", flush=True)
while os.getppid() == parent:
    time.sleep(0.05)
exit_with_parent()
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
from backend.processes import for_child
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, env=for_child(os.environ))
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


def test_who_starts_does_not_mind_who_ends_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counts_folder(tmp_path) as ending:
        open_first = os.open

        def open_too_late(path: Path, flags: int) -> int:
            monkeypatch.undo()
            shutil.rmtree(ending)
            return open_first(path, flags)

        monkeypatch.setattr(os, "open", open_too_late)
        with counts_folder(tmp_path) as starting:
            assert starting.is_dir()
    assert not ending.exists()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = runtime_folder(tmp_path / "data")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="not ours alone"):
        runtime_folder(tmp_path / "data")


@pytest.mark.parametrize("child", [CHILD, SLOW_CHILD], ids=["at work", "still starting"])
def test_an_orphan_ends(child: str) -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT, child], capture_output=True, text=True, timeout=50, check=True
    )
    stat = Path(f"/proc/{int(parent.stdout)}/stat")
    deadline_s = time.monotonic() + 20
    # a zombie has ended too: whoever adopted it has not looked yet
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


DECODE_MANY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from backend.processes import give_back_memory
from model.transforms import InputSpec, to_pixels

give_back_memory()

spec = InputSpec(resize_size=36, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
content = sys.stdin.buffer.read()

def peak_kb():  # of this process: getrusage tells that of the parent where that was more
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak_kb()
with ThreadPoolExecutor(8) as pool:
    shapes = set(pool.map(lambda _: to_pixels(content, spec, max_pixels=20_000_000).shape, range(8)))
assert shapes == {(32, 32, 3)}
print((peak_kb() - before) // 1024)
"""


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_many_small_files_of_huge_images_take_the_memory_of_one(mode: str) -> None:
    """4,400 x 4,400 pixels are 77 MB as RGBA, and less than a tenth as a file; eight at a time are over a gigabyte."""
    file = BytesIO()
    Image.new(mode, (4400, 4400)).save(file, format="PNG")
    content = file.getvalue()
    assert len(content) < 200_000
    run = subprocess.run([sys.executable, "-c", DECODE_MANY], input=content, capture_output=True, check=True)
    assert int(run.stdout) < 350


WORKER = """
import sys
from pathlib import Path
from threadpoolctl import threadpool_info
from backend.bootstrap import Container
from backend.settings import Settings

container = Container(Settings(model_dir=Path(sys.argv[1])))
worker = container.worker()
for handle in (container.querying, container.pushing, container.embedding, container.reconciliation):
    assert handle
print(sorted(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"))
for lane in worker._lanes:
    lane.executor.close()
"""


def test_a_worker_computes_in_one_thread(tmp_path: Path) -> None:
    """Those of a linear algebra wait for each other by spinning: choosing what to label next took twice the time."""
    run = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout)) == {1}
