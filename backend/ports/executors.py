"""Jobs are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backend.domain import Job, Progress

ReportProgress = Callable[[Progress], None]
"""Called by running work now and then; raises ``JobCancelled`` when the job should stop."""


class Executor(Protocol):
    """Runs jobs, outside the calling process or in it."""

    def run(self, job: Job, report: ReportProgress) -> str:
        """Run a job to its end and return its outcome in words.

        Raises:
            TrainingImpossible: there is not enough to learn from (yet).
            JobCancelled: ``report`` said so.
            JobFailed: it ended without success; the message is the reason.
        """

    def close(self) -> None:
        """End everything that is still running."""
