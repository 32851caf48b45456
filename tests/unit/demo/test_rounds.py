"""A round counts the suggestions for open tasks only, and shows what it counted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from backend.demo.annotator import StoredSuggestion, choices_config
from backend.demo.rounds import HEADING, Round, measure_round

TRUTH = {1: "one", 2: "two", 3: "three", 4: "four"}


def shown(result: Round) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(result)
    return file.getvalue().rstrip("\n")


def test_labelled_tasks_do_not_count() -> None:
    suggestions = [
        StoredSuggestion(task_id=1, class_name="one", score=0.9),
        StoredSuggestion(task_id=2, class_name="two", score=0.8),
        StoredSuggestion(task_id=3, class_name="eight", score=0.3),
        StoredSuggestion(task_id=4, class_name="four", score=0.7),
    ]
    result = measure_round(suggestions, TRUTH, {1}, version="p1-v2-0a1b2c3d", wait_s=1.5)
    assert (result.n_labels, result.n_suggestions, result.n_right) == (1, 3, 2)
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.mean_score == pytest.approx(0.6)


def test_no_suggestions_are_no_accuracy() -> None:
    result = measure_round([], TRUTH, set(), version="p1-v1-0a1b2c3d", wait_s=0.0)
    assert result.accuracy == 0.0
    assert result.mean_score == 0.0


def test_the_line_shows_the_share_and_fits_its_heading() -> None:
    result = Round(n_labels=40, version="p1-v3-0a1b2c3d", n_suggestions=360, n_right=180, mean_score=0.48, wait_s=2.04)
    line = shown(result)
    assert "█" * 10 + "░" * 10 + "   50%" in line
    assert "180 of 360" in line
    assert "0.48" in line
    assert "2.0 s" in line
    assert len(line) <= 80
    assert line.index(result.version) == HEADING.index("version")


def test_class_names_are_escaped_in_the_label_config() -> None:
    assert "<Choice value='\"a\" &amp; &lt;b&gt;'/>" in choices_config(['"a" & <b>'])
