"""What is counted into files, and what becomes of a process that counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from backend.measurements import COUNTERS_BYTES, HISTOGRAMS_BYTES

COUNT = """
import sys
from backend.measurements import Counting, labelled, request_durations, suggestions

for number in range(int(sys.argv[1])):
    with Counting():
        labelled(request_durations, "GET", f"/{number}", "200").observe(0.1)
        labelled(suggestions, "made").inc()
"""
BLOCK_BYTES = 512  # stat(2)


def test_a_file_of_counts_has_its_room_on_the_disk_before_it_is_written_to(tmp_path: Path) -> None:
    """A full disk is told to who asks for room; who writes into a hole of a mapped file is ended by a signal."""
    n_labels = 100
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COUNT, str(n_labels)], env=environment, check=True)
    kept = {file.name.partition("_")[0]: file.stat() for file in tmp_path.glob("*.db")}
    assert {kind: status.st_size for kind, status in kept.items()} == {
        "counter": COUNTERS_BYTES,
        "histogram": HISTOGRAMS_BYTES,
    }
    assert all(status.st_blocks * BLOCK_BYTES >= status.st_size for status in kept.values())
