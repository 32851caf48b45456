"""Query strategies against random selection, by their replays (``model.simulation``): savings, tables, a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.query import STRATEGIES
from model.simulation import Curve

BASELINE = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A strategy against random selection, replayed with the same seeds, and perhaps random selection with more.

    ``labels_needed``, interpolated between numbers of labels, reach ``target_accuracy``, that of random selection with
    ``random_labels``, the most there were: ``None`` where it is never reached. ``labels_within_error`` reach what is a
    standard error of the target less: near the most that all labels teach, that is what can be told apart.
    ``worst_difference`` is the lowest mean difference of accuracy, paired by seed, over all numbers of labels, and was
    found at ``worst_at`` of them. Standard errors are over seeds, ``None`` for a single one.
    """

    set_name: str
    backbone: str
    strategy: str
    target_accuracy: float
    target_standard_error: float | None
    random_labels: int
    labels_needed: float | None
    labels_within_error: float | None
    worst_difference: float
    worst_standard_error: float | None
    worst_at: int


def savings(curves: Sequence[Curve]) -> Iterator[Saving]:
    """Compare the curves of one set and backbone with that of random selection, where it is among them."""
    for random in (curve for curve in curves if curve.strategy == BASELINE):
        baseline = np.array(random.accuracy)
        target = float(baseline.mean(axis=0)[-1])
        target_errors = standard_errors(baseline)
        target_error = 0.0 if target_errors is None else float(target_errors[-1])
        for curve in curves:
            accuracies = np.array(curve.accuracy)
            means = accuracies.mean(axis=0)
            differences = accuracies - baseline[: len(accuracies)]
            worst = int(differences.mean(axis=0).argmin())
            errors = standard_errors(differences)
            yield Saving(
                set_name=curve.set_name,
                backbone=curve.backbone,
                strategy=curve.strategy,
                target_accuracy=round(target, 4),
                target_standard_error=None if target_errors is None else round(target_error, 4),
                random_labels=random.n_labels[-1],
                labels_needed=labels_needed(curve.n_labels, means, target),
                labels_within_error=labels_needed(curve.n_labels, means, target - target_error),
                worst_difference=round(float(differences.mean(axis=0)[worst]), 4),
                worst_standard_error=None if errors is None else round(float(errors[worst]), 4),
                worst_at=curve.n_labels[worst],
            )


def labels_needed(n_labels: Sequence[int], accuracies: NDArray[np.float64], target: float) -> float | None:
    """Return the number of labels at which accuracies, (n_budgets,), first reach a target; ``None`` for never."""
    reached = np.flatnonzero(accuracies >= target)
    if not len(reached):
        return None
    last = int(reached[0])
    if last == 0:
        return float(n_labels[0])
    pair = slice(last - 1, last + 1)
    return round(float(np.interp(target, accuracies[pair], n_labels[pair])), 1)


def standard_errors(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the standard errors of the means over seeds, (n_budgets,), of values, (n_seeds, n_budgets)."""
    if len(values) < 2:
        return None
    errors: NDArray[np.float64] = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return errors


def by_panel(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Return the curves by set and backbone."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        panels.setdefault((curve.set_name, curve.backbone), []).append(curve)
    return panels


def accuracy_rows(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """Return a table of one set and backbone as text: a row for each number of labels, accuracies in per cent."""
    means = {curve.strategy: 100 * np.mean(curve.accuracy, axis=0) for curve in curves}
    return [
        {"labels": str(n_labels)} | {strategy: f"{values[column]:.1f}" for strategy, values in means.items()}
        for column, n_labels in enumerate(curves[0].n_labels)
    ]


def saving_rows(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """Return a table of one set and backbone as text: a row for each strategy, in per cent and points of accuracy."""
    return [
        {
            "strategy": saving.strategy,
            f"labels for {_per_cent(saving.target_accuracy, saving.target_standard_error)} %": _share(
                saving.labels_needed, saving
            ),
            "for a standard error less": _share(saving.labels_within_error, saving),
            "worst against random, points": _worst(saving) if saving.strategy != BASELINE else "",
        }
        for saving in savings(curves)
    ]


def _share(n_labels: float | None, saving: Saving) -> str:
    return "never" if n_labels is None else f"{n_labels:.0f} ({n_labels / saving.random_labels:.0%})"


def _per_cent(value: float, standard_error: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if standard_error is None else f" ± {100 * standard_error:.1f}")


def _worst(saving: Saving) -> str:
    sign = "+" if saving.worst_difference >= 0 else ""
    return f"{sign}{_per_cent(saving.worst_difference, saving.worst_standard_error)} at {saving.worst_at} labels"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw a panel for each set and backbone: mean accuracy by number of labels, and a standard error around it.

    Raises:
        ModuleNotFoundError: matplotlib, the extra ``plots``, is not installed.
        OSError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    panels = by_panel(curves)
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, grid = pyplot.subplots(n_rows, n_columns, figsize=(5 * n_columns, 4 * n_rows), squeeze=False)
    for axes, ((set_name, backbone), group) in zip(grid.flat, panels.items(), strict=False):
        for curve in group:
            accuracies = 100 * np.array(curve.accuracy)
            means, errors = accuracies.mean(axis=0), standard_errors(accuracies)
            colour = f"C{STRATEGIES.index(curve.strategy)}"
            axes.plot(curve.n_labels, means, marker=".", label=curve.strategy, color=colour)
            if errors is not None:
                axes.fill_between(curve.n_labels, means - errors, means + errors, alpha=0.15, color=colour)
        axes.set(title=f"{set_name}, {backbone}", xlabel="labels", ylabel="accuracy, %", xscale="log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.legend(fontsize="small")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
