"""What is counted into files, and what becomes of a process that counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COUNT = """
import sys
from backend.measurements import Counting, labelled, request_durations

for number in range(int(sys.argv[1])):
    with Counting():
        labelled(request_durations, "GET", f"/{number}", "200").observe(0.1)
"""
BLOCK_BYTES = 512  # stat(2)


def test_a_file_of_counts_has_its_room_on_the_disk_before_it_is_written_to(tmp_path: Path) -> None:
    """A full disk is told to who asks for room; who writes into a hole of a mapped file is ended by a signal."""
    for n_routes, at_least in ((1, 1), (150, 2**17)):
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", COUNT, str(n_routes)], env=environment, check=True)
        files = list(tmp_path.glob("*.db"))
        assert files
        for file in files:
            status = file.stat()
            assert status.st_size >= at_least
            assert status.st_blocks * BLOCK_BYTES >= status.st_size
            file.unlink()
