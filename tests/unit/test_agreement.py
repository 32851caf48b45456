"""How far annotators agree."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backend.agreement import Agreement, annotator_agreement
from backend.domain import Annotation
from tests.factories import NOON, make_annotation, make_schema

SINGLE = make_schema("cat", "dog", "bird")
MULTIPLE = make_schema("cat", "dog", "bird", multiple=True)


def answers(task_id: int, *labels: tuple[str, ...]) -> list[Annotation]:
    """Annotations of one task, each somebody else's and a second newer than the one before."""
    return [
        make_annotation(
            10 * task_id + number,
            task_id,
            *names,
            updated_at=NOON + timedelta(seconds=number),
            annotator_id=number,
        )
        for number, names in enumerate(labels, start=1)
    ]


def test_tasks_that_one_annotator_answered_say_nothing() -> None:
    assert annotator_agreement([], SINGLE) == Agreement(n_tasks=0, share=None)
    assert annotator_agreement(answers(1, ("cat",)) + answers(2, ("dog",)), SINGLE).n_tasks == 0


def test_all_annotators_of_a_task_must_agree() -> None:
    given = (
        answers(1, ("cat",), ("cat",))
        + answers(2, ("cat",), ("cat",), ("dog",))
        + answers(3, ("dog",))
        + answers(4, ("bird",), ("bird",), ("bird",))
    )
    assert annotator_agreement(given, SINGLE) == Agreement(n_tasks=3, share=pytest.approx(2 / 3))


@pytest.mark.parametrize("empty", [(), ("horse",)])
def test_skipped_answers_and_classes_that_are_gone_do_not_count(empty: tuple[str, ...]) -> None:
    assert annotator_agreement(answers(1, ("cat",), empty), SINGLE).n_tasks == 0
    assert annotator_agreement(answers(1, ("cat",), ("cat",), empty), SINGLE).share == 1


def test_several_classes_are_compared_whatever_their_order() -> None:
    assert annotator_agreement(answers(1, ("cat", "dog"), ("dog", "cat")), MULTIPLE).share == 1
    assert annotator_agreement(answers(1, ("cat", "dog"), ("cat",)), MULTIPLE).share == 0
    assert annotator_agreement(answers(1, ("cat", "dog"), ("cat",)), SINGLE).share == 1


def test_what_somebody_said_last_is_their_answer() -> None:
    first, second = answers(1, ("cat",), ("dog",))
    changed = replace(second, id=99, class_names=("cat",), updated_at=NOON + timedelta(minutes=1))
    assert annotator_agreement([changed, first, second], SINGLE) == Agreement(n_tasks=1, share=1)
    assert annotator_agreement([second, changed], SINGLE).n_tasks == 0


def test_annotations_of_nobody_are_different_peoples() -> None:
    given = [replace(each, annotator_id=None) for each in answers(1, ("cat",), ("dog",))]
    assert annotator_agreement(given, SINGLE) == Agreement(n_tasks=1, share=0)
