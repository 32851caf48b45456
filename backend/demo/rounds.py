"""What one round of labelling brought, measured on the suggestions that Label Studio stores, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.text import Text

from backend.demo.annotator import StoredSuggestion

BAR_WIDTH = 20
HEADING = f"{'labels':>6}  {'suggestions that are right':<{BAR_WIDTH + 18}}  {'score':>5}  {'wait':>6}  version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The state after a round: how good the suggestions for the tasks still without a label are.

    ``mean_score`` is what Tandem believes the accuracy to be; ``wait_s`` went from the last label of the round to
    the stored suggestions of the version that learned from it.
    """

    n_labels: int
    version: str
    n_suggestions: int
    n_right: int
    mean_score: float
    wait_s: float

    @property
    def accuracy(self) -> float:
        """The share of suggestions that are right, 0 to 1."""
        return self.n_right / self.n_suggestions if self.n_suggestions else 0.0

    def __rich__(self) -> Text:
        filled = round(self.accuracy * BAR_WIDTH)
        counts = f"{self.n_right} of {self.n_suggestions}"
        return Text.assemble(
            f"{self.n_labels:>6}  ",
            ("█" * filled, "green"),
            ("░" * (BAR_WIDTH - filled), "dim"),
            (f" {self.accuracy:>5.0%}", "bold"),
            f"  {counts:<10}  {self.mean_score:>5.2f}  {self.wait_s:>4.1f} s  ",
            (self.version, "cyan"),
        )


def measure_round(
    suggestions: Iterable[StoredSuggestion],
    truth: Mapping[int, str],
    labelled: set[int],
    *,
    version: str,
    wait_s: float,
) -> Round:
    """Compare the suggestions for tasks without a label with what these tasks truly show.

    Args:
        suggestions: of one model version.
        truth: the true class of every task.
        labelled: the tasks that have a label; their suggestions do not count.
        version: the model version.
        wait_s: from the last label to these suggestions.
    """
    counted = [suggestion for suggestion in suggestions if suggestion.task_id not in labelled]
    scores = [suggestion.score for suggestion in counted]
    return Round(
        n_labels=len(labelled),
        version=version,
        n_suggestions=len(counted),
        n_right=sum(truth[suggestion.task_id] == suggestion.class_name for suggestion in counted),
        mean_score=sum(scores) / len(scores) if scores else 0.0,
        wait_s=wait_s,
    )
