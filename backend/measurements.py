"""What every process counts while it works, for Prometheus.

The processes of one supervisor count into files of one folder, which ``PROMETHEUS_MULTIPROC_DIR`` names to them, so
that each of them can tell the sum, and what a process counted outlives it. A process started alone counts for itself.
What the database knows is not counted here.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

log = structlog.get_logger()

ANSWER_BOUNDS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Metric = TypeVar("Metric", Counter, Histogram)

COUNTERS_BYTES = 2**16
HISTOGRAMS_BYTES = 2**19
"""Room for all the labels that there can be, in each file of a process."""


class AllocatedCounts(MmapedDict):
    """Counts in a file, as prometheus_client keeps them, that has its room on the disk before it is mapped.

    Else it is full of holes, and where there is no room for one that is written to, the system ends the process.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Open a file, or make it.

        Raises:
            OSError: there is no room for it.
        """
        if not read_mode:
            path = Path(filename)
            with path.open("ab") as file:
                n_bytes = HISTOGRAMS_BYTES if path.name.startswith("histogram") else COUNTERS_BYTES
                os.posix_fallocate(file.fileno(), 0, n_bytes)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]


values.MmapedDict = AllocatedCounts  # type: ignore[attr-defined]  # where they are made

_OWN = CollectorRegistry()

request_durations = Histogram(
    "tandem_http_request_duration_seconds",
    "Time to answer a request, by route and status",
    ["method", "route", "status"],
    buckets=ANSWER_BOUNDS_S,
    registry=_OWN,
)
predict_durations = Histogram(
    "tandem_predict_duration_seconds",
    "Time to answer a request for suggestions; unknown: at least one of its images had never been brought in",
    ["images"],
    buckets=ANSWER_BOUNDS_S,
    registry=_OWN,
)
suggestions = Counter(
    "tandem_suggestions", "Tasks that suggestions were asked for, by whether there was one", ["outcome"], registry=_OWN
)
image_fetches = Counter(
    "tandem_image_fetches", "Images fetched, by scheme and what came of it", ["scheme", "outcome"], registry=_OWN
)


@cache
def labelled(metric: Metric, *values: str) -> Metric:
    """Return the part of a metric with these values of its labels, of which there are few.

    The metric itself takes longer to find it than to count in it.
    """
    return metric.labels(*values)


class Counting:
    """Count in this block; where the disk that the counts are kept on is full, nothing else fails because of it.

    Every request does so twice, and to enter a generator takes longer than to count.
    """

    def __enter__(self) -> None:
        """Begin to count."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Go on after the block, whatever the disk has done."""
        if not isinstance(error, OSError):
            return False
        log.warning("not counted", reason=str(error))
        return True


def counts() -> Collector:
    """Return what was counted by all processes of this one's supervisor, or by this one where it has none."""
    try:
        return MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    except ValueError:
        return _OWN
