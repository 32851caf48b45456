"""Tables, a summary and a figure of the runs of `benchmarks/learning.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.learning_runs import Combination, Run

BASELINE = "logistic"
WHOLE_POOL = 10_000
"""Labels per class that no set has."""
TARGETS = {5: (7.0, 0.085), 10: (5.5, 0.05), 25: (4.0, 0.05), 50: (3.0, 0.05)}
"""Labels per class: macro-F1 points that Tandem with the pool should be above the baseline, and its highest ECE."""

# Macro-F1 in per cent of the baseline at 5, 10, 25 and 50 labels per class and with the whole pool, as published
# with the data: mean of three draws whose order is not published, but for the whole pool, where nothing is drawn.
PUBLISHED: dict[tuple[str, str], dict[int, float]] = {
    key: dict(zip((5, 10, 25, 50, WHOLE_POOL), values, strict=True))
    for key, values in {
        ("ants_bees", "densenet121"): (76.6, 83.6, 92.0, 92.0, 93.7),
        ("ants_bees", "mobilenet_v2"): (81.4, 90.1, 92.9, 93.5, 93.1),
        ("trash", "densenet121"): (56.9, 66.3, 75.1, 80.0, 85.3),
        ("trash", "mobilenet_v2"): (51.8, 59.4, 67.7, 74.0, 78.8),
        ("fruit_multilabel", "densenet121"): (76.9, 86.7, 92.8, 96.0, 96.4),
        ("fruit_multilabel", "mobilenet_v2"): (79.8, 88.9, 93.2, 94.9, 94.9),
    }.items()
}


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return all tables, as rows of plain values."""
    drawn = [run for run in runs if run.n_per_class != WHOLE_POOL]
    sizes = sorted({run.n_per_class for run in drawn})
    return {
        "per_size": {str(size): _methods([run for run in drawn if run.n_per_class == size]) for size in sizes},
        "against_each_other": _pairings(drawn),
        "against_the_best_other": _duels(drawn),
        "baseline_and_published": _reproduction(runs),
    }


def _methods(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per method: means over sets, each the mean over backbones and seeds."""
    baseline = {run.combination: run for run in runs if run.method == BASELINE}
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        paired = [(run, baseline[key]) for run in own if (key := _with_method(run, BASELINE)) in baseline]
        gains = _by_set(paired, _points_ahead, _ours)
        row: dict[str, Any] = {"method": method, "runs": len(own), "gain_in_points": gains}
        for field in ("macro_f1", "accuracy", "ece", "uncalibrated_ece", "log_loss", "wall_s", "cpu_s", "pool_wall_s"):
            row[field] = _by_set(own, lambda run, field=field: getattr(run, field), lambda run: run)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["macro_f1"])


def _by_set(items: Sequence[Any], value: Callable[[Any], float], run_of: Callable[[Any], Run]) -> float | None:
    values = defaultdict(list)
    for item in items:
        values[run_of(item).image_set].append(value(item))
    return fmean(fmean(each) for each in values.values()) if values else None


def _with_method(run: Run, method: str) -> Combination:
    return run.combination._replace(method=method)


def _pairings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return how ours does against every other method, on the images, weights and draws that both have run on.

    The difference is in macro-F1 points; all values are means over sets, each the mean over backbones and seeds.
    """
    known = {run.combination: run for run in runs}
    methods = list(dict.fromkeys(run.method for run in runs))
    rows = []
    for size in sorted({run.n_per_class for run in runs}):
        here = [run for run in runs if run.n_per_class == size]
        for ours in (method for method in methods if method.startswith("tandem")):
            for other in (method for method in methods if not method.startswith("tandem")):
                pairs = [
                    (run, known[key])
                    for run in here
                    if run.method == ours and (key := _with_method(run, other)) in known
                ]
                if not pairs:
                    continue
                rows.append(
                    {
                        "n_per_class": size,
                        "method": ours,
                        "other": other,
                        "runs": len(pairs),
                        "seeds": len({run.seed for run, _ in pairs}),
                        "backbones": ", ".join(sorted({run.backbone for run, _ in pairs})),
                        "difference_in_points": _by_set(pairs, _points_ahead, _ours),
                        "cpu_s": _by_set(pairs, lambda pair: pair[0].cpu_s, _ours),
                        "cpu_s_of_other": _by_set(pairs, lambda pair: pair[1].cpu_s, _ours),
                    }
                )
    return rows


def _points_ahead(pair: tuple[Run, Run]) -> float:
    return 100 * (pair[0].macro_f1 - pair[1].macro_f1)


def _ours(pair: tuple[Run, Run]) -> Run:
    return pair[0]


def _duels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return, worst first, how far ours is above the best other method on each set, backbone and size.

    The differences are macro-F1 points, paired by draw; ``standard_error`` is that of their mean.
    """
    known = {run.combination: run for run in runs}
    cells: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.image_set, run.backbone, run.n_per_class].append(run)
    rows = []
    for (image_set, backbone, size), here in cells.items():
        for method in sorted({run.method for run in here if run.method.startswith("tandem")}):
            own = [run for run in here if run.method == method]
            differences = {}
            for other in sorted({run.method for run in here if not run.method.startswith("tandem")}):
                pairs = [(run, known.get(_with_method(run, other))) for run in own]
                differences[other] = [100 * (a.macro_f1 - b.macro_f1) for a, b in pairs if b is not None]
            means = {other: fmean(values) for other, values in differences.items() if values}
            if not means:
                continue
            best = min(means, key=means.__getitem__)
            n_seeds = len(differences[best])
            rows.append(
                {
                    "method": method,
                    "n_per_class": size,
                    "image_set": image_set,
                    "backbone": backbone,
                    "best_other": best,
                    "difference_in_points": means[best],
                    "standard_error": stdev(differences[best]) / n_seeds**0.5 if n_seeds > 1 else None,
                    "seeds": n_seeds,
                    "above_baseline_in_points": means.get(BASELINE),
                }
            )
    return sorted(rows, key=lambda row: (row["method"], row["difference_in_points"]))


def _reproduction(runs: Sequence[Run]) -> list[dict[str, Any]]:
    values = defaultdict(list)
    for run in runs:
        if run.method == BASELINE:
            values[run.image_set, run.backbone, run.n_per_class].append(100 * run.macro_f1)
    return [
        {
            "image_set": image_set,
            "backbone": backbone,
            "n_per_class": "whole pool" if size == WHOLE_POOL else size,
            "macro_f1": fmean(each),
            "standard_deviation": stdev(each) if len(each) > 1 else None,
            "published": PUBLISHED.get((image_set, backbone), {}).get(size),
        }
        for (image_set, backbone, size), each in sorted(values.items())
    ]


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the summary."""
    for size, rows in summary["per_size"].items():
        title = f"{size} labels per class: means over sets"
        if int(size) in TARGETS:
            title += " (target with the pool: {:+.1f}, ECE at most {:.3f})".format(*TARGETS[int(size)])
        table = Table(
            "method", "runs", "macro-F1", "above (a)", "accuracy", "ECE", "uncalibrated", "s", "of it pool", title=title
        )
        for row in rows:
            table.add_row(
                row["method"],
                str(row["runs"]),
                f"{100 * row['macro_f1']:.1f}",
                _number(row["gain_in_points"], "+.1f"),
                f"{100 * row['accuracy']:.1f}",
                f"{row['ece']:.3f}",
                f"{row['uncalibrated_ece']:.3f}",
                f"{row['wall_s']:.1f}",
                f"{row['pool_wall_s']:.1f}",
            )
        console.print(table)
    _show_rows(summary["against_each_other"], "Ours against every other method, on the runs that both have", console)
    _show_rows(summary["against_the_best_other"], "Macro-F1 points above the best other method, worst first", console)
    _show_rows(summary["baseline_and_published"], "(a) beside its published figures, macro-F1 in per cent", console)


def _show_rows(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    if not rows:
        return
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*(_number(value, ".1f") if not isinstance(value, str) else value for value in row.values()))
    console.print(table)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else format(value, form)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw learning curves: a row per backbone, a panel per set, a line per method, means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [run for run in runs if run.n_per_class != WHOLE_POOL]
    sets = list(dict.fromkeys(run.image_set for run in drawn))
    backbones = list(dict.fromkeys(run.backbone for run in drawn))
    methods = list(dict.fromkeys(run.method for run in drawn))
    sizes = sorted({run.n_per_class for run in drawn})
    figure, panels = pyplot.subplots(
        len(backbones),
        len(sets),
        figsize=(4.5 * len(sets), 3.6 * len(backbones) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for panel, (backbone, image_set) in zip(panels.flat, product(backbones, sets), strict=True):
        for number, method in enumerate(methods):
            values = defaultdict(list)
            for run in drawn:
                if (run.image_set, run.backbone, run.method) == (image_set, backbone, method):
                    values[run.n_per_class].append(100 * run.macro_f1)
            curve = sorted((size, fmean(each)) for size, each in values.items())
            ours = method.startswith("tandem")
            style = {"linestyle": "-" if ours else "--", "linewidth": 2.2 if ours else 1.3, "color": f"C{number}"}
            sizes_here, means = zip(*curve, strict=True) if curve else ((), ())
            panel.plot(sizes_here, means, marker="o", markersize=4, label=method, **style)
        panel.set(title=f"{image_set}, {backbone}", xlabel="labels per class", xscale="log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for row in panels:
        row[0].set_ylabel("macro-F1 on the test part, %")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(methods), 2 * len(sets) + 1),
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
