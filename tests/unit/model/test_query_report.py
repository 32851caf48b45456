import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from model.query_report import Saving, accuracy_rows, by_panel, draw, labels_needed, saving_rows, savings
from model.simulation import Curve

RANDOM = Curve(
    set_name="pets",
    backbone="resnet18",
    strategy="random",
    n_labels=[10, 20, 40],
    accuracy=[[0.5, 0.6, 0.8], [0.5, 0.7, 0.9]],
    macro_f1=[[0.5, 0.6, 0.8], [0.5, 0.7, 0.9]],
    seconds=1.0,
)
BETTER = replace(RANDOM, strategy="tandem", accuracy=[[0.55, 0.8, 0.9], [0.45, 0.8, 0.9]])
WORSE = replace(RANDOM, strategy="margin", accuracy=[[0.5, 0.6, 0.75], [0.5, 0.5, 0.85]])


def test_savings_are_paired_by_seed_and_held_against_random_at_its_largest_budget() -> None:
    random, better, worse = savings([RANDOM, BETTER, WORSE])
    assert (random.target_accuracy, random.random_labels, random.labels_needed) == (0.85, 40, 40)
    assert (random.worst_difference, random.worst_standard_error) == (0, 0)
    assert better.labels_needed == 30  # half way from 0.8 to 0.9
    assert better.labels_within_error == 20
    assert (better.worst_difference, better.worst_standard_error, better.worst_at) == (0, pytest.approx(0.05), 10)
    assert worse == Saving(
        set_name="pets",
        backbone="resnet18",
        strategy="margin",
        target_accuracy=0.85,
        target_standard_error=0.05,
        random_labels=40,
        labels_needed=None,
        labels_within_error=40,
        worst_difference=-0.1,
        worst_standard_error=0.1,
        worst_at=20,
    )


def test_random_may_have_been_replayed_with_more_seeds() -> None:
    more = replace(RANDOM, accuracy=[*RANDOM.accuracy, [0.0, 0.0, 0.4]])
    _, worse = savings([more, WORSE])
    assert worse.target_accuracy == 0.7
    assert worse.labels_needed == 32
    assert (worse.worst_difference, worse.worst_at) == (-0.1, 20)


def test_without_random_there_is_nothing_to_save() -> None:
    assert list(savings([BETTER, WORSE])) == saving_rows([BETTER]) == []


def test_a_single_seed_has_no_standard_error() -> None:
    alone = [replace(curve, accuracy=curve.accuracy[:1]) for curve in (RANDOM, WORSE)]
    _, worse = savings(alone)
    assert worse.worst_standard_error is None
    assert "NaN" not in json.dumps(asdict(worse))
    assert saving_rows(alone)[1]["worst against random, points"] == "-5.0 at 40 labels"


@pytest.mark.parametrize(("target", "needed"), [(0.4, 10), (0.5, 10), (0.6, 15), (0.75, 35), (0.95, None)])
def test_labels_needed_are_interpolated_where_the_target_is_first_reached(target: float, needed: float | None) -> None:
    found = labels_needed([10, 20, 30, 40], np.array([0.5, 0.7, 0.6, 0.9]), target)
    assert found == (needed and pytest.approx(needed))


def test_tables() -> None:
    assert accuracy_rows([RANDOM, BETTER])[1] == {"labels": "20", "random": "65.0", "tandem": "80.0"}
    assert saving_rows([RANDOM, BETTER, WORSE]) == [
        {
            "strategy": "random",
            "labels for 85.0 ± 5.0 %": "40 (100%)",
            "for a standard error less": "35 (88%)",
            "worst against random, points": "",
        },
        {
            "strategy": "tandem",
            "labels for 85.0 ± 5.0 %": "30 (75%)",
            "for a standard error less": "20 (50%)",
            "worst against random, points": "+0.0 ± 5.0 at 10 labels",
        },
        {
            "strategy": "margin",
            "labels for 85.0 ± 5.0 %": "never",
            "for a standard error less": "40 (100%)",
            "worst against random, points": "-10.0 ± 10.0 at 20 labels",
        },
    ]


def test_panels_are_sets_and_backbones() -> None:
    other = replace(WORSE, set_name="tools")
    assert by_panel([RANDOM, other, BETTER]) == {("pets", "resnet18"): [RANDOM, BETTER], ("tools", "resnet18"): [other]}


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_a_figure(tmp_path: Path, n_seeds: int) -> None:
    curves = [replace(curve, accuracy=curve.accuracy[:n_seeds]) for curve in (RANDOM, BETTER)]
    path = tmp_path / "curve.svg"
    draw([*curves, replace(curves[0], set_name="tools")], path)
    drawn = path.read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("pets, resnet18", "tools, resnet18", "tandem", "20"))
    bands = drawn.count('id="FillBetweenPolyCollection')
    assert bands == (3 if n_seeds == 2 else 0)


def test_a_figure_takes_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError):
        draw([RANDOM], tmp_path / "curve.png")
