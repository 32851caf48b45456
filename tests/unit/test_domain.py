"""The pure decisions: which label a task has, when to train, whether to promote, when to try again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backend.domain import (
    IMMATERIAL_LOG_LOSS,
    Annotation,
    Comparison,
    JobStatus,
    LabelCounts,
    LabelSchema,
    ModelVersion,
    Progress,
    PromotionDecision,
    RetryPolicy,
    TrainingPolicy,
    VersionKind,
    VersionStatus,
    agreed_label,
    agreed_labels,
    decide_promotion,
    finetune_labels,
    untrained_name,
    version_name,
)
from tests.factories import NOON, make_annotation, make_job, make_schema, make_version

SINGLE = make_schema("cat", "dog", "bird")
MULTIPLE = make_schema("cat", "dog", "bird", multiple=True)
POLICY = TrainingPolicy(min_labels=4, finetune_min_labels=200)


def answers(*labels: tuple[str, ...]) -> list[Annotation]:
    """Annotations of one task by several people, each a second newer than the one before."""
    return [
        make_annotation(number, 1, *names, annotator_id=number, updated_at=NOON + timedelta(seconds=number))
        for number, names in enumerate(labels, start=1)
    ]


def test_one_answer_is_the_label() -> None:
    assert agreed_label(answers(("dog",)), SINGLE) == ("dog",)


@pytest.mark.parametrize("given", [[], [()], [(), ()]])
def test_nothing_learned_from_skipped_and_empty_answers(given: list[tuple[str, ...]]) -> None:
    assert agreed_label(answers(*given), SINGLE) is None


def test_the_majority_decides_whatever_came_last() -> None:
    assert agreed_label(answers(("cat",), ("cat",), ("dog",)), SINGLE) == ("cat",)


def test_a_tie_goes_to_the_newest() -> None:
    assert agreed_label(answers(("cat",), ("dog",)), SINGLE) == ("dog",)
    assert agreed_label(answers(("dog",), ("dog",), ("cat",), ("cat",), ("bird",)), SINGLE) == ("cat",)
    assert agreed_label(list(reversed(answers(("cat",), ("dog",)))), SINGLE) == ("dog",)


@pytest.mark.parametrize("schema", [SINGLE, MULTIPLE])
def test_an_annotator_has_one_vote_for_what_he_said_last(schema: LabelSchema) -> None:
    said = [(1, "bird"), (1, "cat"), (2, "dog"), (3, "dog"), (1, "cat")]
    given = [
        make_annotation(number, 1, name, annotator_id=annotator, updated_at=NOON + timedelta(seconds=number))
        for number, (annotator, name) in enumerate(said, start=1)
    ]
    assert agreed_label(given, schema) == ("dog",)
    assert agreed_label([*given[:2], *given[4:]], schema) == ("cat",)


def test_a_tie_of_three_goes_to_the_newest() -> None:
    assert agreed_label(answers(("dog",), ("bird",), ("cat",)), SINGLE) == ("cat",)


def test_answers_of_the_same_moment_are_ordered_by_id() -> None:
    given = [make_annotation(2, 1, "dog"), make_annotation(1, 1, "cat")]
    assert agreed_label(given, SINGLE) == agreed_label(list(reversed(given)), SINGLE) == ("dog",)


def test_ground_truth_beats_any_majority() -> None:
    given = answers(("cat",), ("dog",), ("dog",))
    given[0] = replace(given[0], ground_truth=True)
    assert agreed_label(given, SINGLE) == ("cat",)


def test_the_newest_ground_truth_counts() -> None:
    given = [replace(each, ground_truth=True) for each in answers(("cat",), ("dog",))]
    assert agreed_label(given, SINGLE) == ("dog",)


def test_a_skipped_ground_truth_decides_nothing() -> None:
    given = answers((), ("dog",))
    given[0] = replace(given[0], ground_truth=True)
    assert agreed_label(given, SINGLE) == ("dog",)


def test_classes_that_are_gone_do_not_vote() -> None:
    assert agreed_label(answers(("lynx",), ("lynx",), ("dog",)), SINGLE) == ("dog",)
    assert agreed_label(answers(("lynx",)), SINGLE) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("cat", "dog")], ("cat", "dog")),
        ([("cat", "dog"), ("cat",), ("cat", "bird")], ("cat",)),
        ([("bird", "cat"), ("cat", "bird"), ("dog",)], ("cat", "bird")),
        ([("cat",), ("dog",)], ("dog",)),
        ([("cat", "lynx")], ("cat",)),
        ([("cat", "dog"), ("dog", "cat")], ("cat", "dog")),
    ],
)
def test_of_several_classes_each_needs_more_than_half(given: list[tuple[str, ...]], expected: tuple[str, ...]) -> None:
    assert agreed_label(answers(*given), MULTIPLE) == expected


def test_a_project_that_became_single_keeps_one_class_of_several() -> None:
    assert agreed_label(answers(("cat", "dog")), SINGLE) == ("cat",)


def test_labels_by_task_leave_out_tasks_without() -> None:
    given = [make_annotation(1, 7, "cat"), make_annotation(2, 3, "dog"), make_annotation(3, 4)]
    assert agreed_labels(given, SINGLE) == {3: ("dog",), 7: ("cat",)}


# --- when to train -----------------------------------------------------------------------------------------------


def counts(n_labels: int, *, n_classes: int = 2, n_finetune_labels: int = 0) -> LabelCounts:
    return LabelCounts(
        n_labels=n_labels, n_classes=n_classes, n_embedded_labels=n_labels, n_finetune_labels=n_finetune_labels
    )


def decide(given: LabelCounts, schema: LabelSchema = SINGLE) -> VersionKind | None:
    return POLICY.decide(given, schema).next


def test_too_few_labels_wait_and_say_so() -> None:
    decision = POLICY.decide(counts(3), SINGLE)
    assert decision.next is None
    assert decision.reason == "waiting for labels: 3 of 4"


def test_one_class_is_nothing_to_learn_unless_there_may_be_several() -> None:
    assert decide(counts(50, n_classes=1)) is None
    assert decide(counts(50, n_classes=1), MULTIPLE) is VersionKind.HEAD


@pytest.mark.parametrize(
    ("n_labels", "n_finetune_labels", "expected"),
    [
        (4, 0, VersionKind.HEAD),
        (199, 0, VersionKind.HEAD),
        (200, 0, VersionKind.FINETUNE),
        (299, 200, VersionKind.HEAD),
        (300, 200, VersionKind.FINETUNE),
    ],
)
def test_fine_tuning_is_due_at_enough_labels_and_again_at_half_more(
    n_labels: int, n_finetune_labels: int, expected: VersionKind
) -> None:
    given = counts(n_labels, n_finetune_labels=n_finetune_labels)
    assert decide(given) is expected
    assert POLICY.finetune_is_due(given) is (expected is VersionKind.FINETUNE)


def test_labels_without_features_do_not_count_for_fine_tuning() -> None:
    assert not POLICY.finetune_is_due(replace(counts(500), n_embedded_labels=199))


def test_rejected_fine_tuning_counts_too() -> None:
    versions = [
        make_version(3, n_labels=400),
        make_version(2, kind=VersionKind.FINETUNE, status=VersionStatus.REJECTED, n_labels=300),
        make_version(1, kind=VersionKind.FINETUNE, n_labels=200),
    ]
    assert finetune_labels(versions) == 300
    assert finetune_labels(versions[:1]) == 0


def test_a_training_waits_for_a_quiet_moment_but_not_for_ever() -> None:
    policy = TrainingPolicy(min_labels=4, finetune_min_labels=200, quiet_s=1, max_wait_s=10)
    assert policy.run_after(NOON, None) == NOON + timedelta(seconds=1)
    assert policy.run_after(NOON, NOON - timedelta(seconds=5)) == NOON + timedelta(seconds=1)
    assert policy.run_after(NOON, NOON - timedelta(seconds=9.5)) == NOON + timedelta(seconds=0.5)


# --- whether to promote --------------------------------------------------------------------------------------------

ACTIVE = make_version(1, status=VersionStatus.ACTIVE)


def decide_between(
    candidate: ModelVersion, active: ModelVersion | None, comparison: Comparison | None, *, n_withdrawn: int
) -> PromotionDecision:
    """Decide where the label config has the classes of the candidate."""
    return decide_promotion(candidate, active, comparison, class_names=candidate.class_names, n_withdrawn=n_withdrawn)


def comparison(difference: float, *, n_images: int = 20) -> Comparison:
    return Comparison(
        n_images=n_images, log_loss_difference=difference, standard_error=0.1, accuracy_difference=-difference
    )


def test_the_first_version_is_promoted() -> None:
    decision = decide_between(make_version(1), None, None, n_withdrawn=0)
    assert decision.promote
    assert decision.reason == "first version of the project"


@pytest.mark.parametrize(
    ("kind", "difference", "expected"),
    [
        (VersionKind.HEAD, -0.5, True),
        (VersionKind.HEAD, 0.1, True),
        (VersionKind.HEAD, 0.1 + IMMATERIAL_LOG_LOSS / 2, True),
        (VersionKind.HEAD, 0.11 + IMMATERIAL_LOG_LOSS, False),
        (VersionKind.FINETUNE, -0.5, True),
        (VersionKind.FINETUNE, -0.05, True),
        (VersionKind.FINETUNE, -0.04, False),
        (VersionKind.FINETUNE, 0.0, False),
    ],
)
def test_a_head_must_not_be_worse_and_a_network_must_be_better(
    kind: VersionKind, difference: float, expected: bool
) -> None:
    decision = decide_between(make_version(2, kind=kind), ACTIVE, comparison(difference), n_withdrawn=0)
    assert decision.promote is expected
    assert f"{difference:+.3f}" in decision.reason
    assert ACTIVE.name in decision.reason


@pytest.mark.parametrize(
    ("n_labels", "accuracy_difference", "expected"), [(18, 0.0, True), (18, -0.01, False), (17, 0.1, False)]
)
def test_a_head_that_knows_far_more_may_be_less_sure_but_not_less_accurate(
    n_labels: int, accuracy_difference: float, expected: bool
) -> None:
    worse = replace(comparison(0.5), accuracy_difference=accuracy_difference)
    candidate = make_version(2, n_labels=n_labels)
    assert decide_between(candidate, make_version(1, n_labels=12), worse, n_withdrawn=0).promote is expected


def test_a_network_that_knows_far_more_must_be_better_all_the_same() -> None:
    worse = replace(comparison(0.5), accuracy_difference=0.1)
    candidate = make_version(2, kind=VersionKind.FINETUNE, n_labels=300)
    assert not decide_between(candidate, make_version(1, n_labels=200), worse, n_withdrawn=0).promote


def test_withdrawn_labels_are_unlearned_even_at_a_price() -> None:
    decision = decide_between(make_version(2), ACTIVE, comparison(5.0), n_withdrawn=2)
    assert decision.promote
    assert "2 labels that were since withdrawn or changed" in decision.reason


def test_a_new_class_is_promoted_even_at_a_price() -> None:
    candidate = make_version(2, class_names=("cat", "dog", "bird"))
    decision = decide_between(candidate, ACTIVE, None, n_withdrawn=0)
    assert decision.promote
    assert decision.reason == f"{ACTIVE.name} does not know bird"


def test_a_class_that_only_the_active_version_knows_counts_as_long_as_the_label_config_has_it() -> None:
    active, better = make_version(1, class_names=("cat", "dog", "bird")), comparison(-5.0)
    decision = decide_promotion(make_version(2), active, better, class_names=("cat", "bird"), n_withdrawn=9)
    assert not decision.promote
    assert decision.reason == f"{active.name} knows bird, which it does not"
    assert decide_promotion(make_version(2), active, better, class_names=("cat", "dog"), n_withdrawn=0).promote


@pytest.mark.parametrize("n_images", [0, 1])
def test_with_nothing_to_compare_on_the_one_that_knows_more_wins(n_images: int) -> None:
    assert decide_between(make_version(2), ACTIVE, comparison(5.0, n_images=n_images), n_withdrawn=0).promote
    assert decide_between(make_version(2), ACTIVE, None, n_withdrawn=0).promote


# --- jobs and names --------------------------------------------------------------------------------------------------


def test_retries_wait_twice_as_long_each_time_and_end() -> None:
    policy = RetryPolicy(max_attempts=4, first_delay_s=2)
    delays = [policy.next_delay(attempts) for attempts in range(1, 5)]
    assert delays == [timedelta(seconds=2), timedelta(seconds=4), timedelta(seconds=8), None]
    assert RetryPolicy(max_attempts=99, longest_delay_s=60).next_delay(50) == timedelta(seconds=60)


def test_a_running_job_says_how_long_it_will_take() -> None:
    job = replace(make_job(), started_at=NOON, progress=Progress(done=1, total=4, unit="steps"))
    now = NOON + timedelta(seconds=10)
    assert job.eta_s(now) == 30
    assert replace(job, progress=Progress(done=5, total=4)).eta_s(now) == 0
    assert replace(job, progress=Progress(total=4)).eta_s(now) is None
    assert replace(job, status=JobStatus.QUEUED).eta_s(now) is None


def test_names() -> None:
    assert version_name(5, 3, "1a2b3c4d" + "0" * 56) == "p5-v3-1a2b3c4d"
    assert untrained_name(5) == "p5-v0-untrained"
