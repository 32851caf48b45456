from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.query import DEFAULT_STRATEGY, STRATEGIES, Pool, score
from model.query.geometry import cluster_centres, nearest
from model.query.gradients import gradient_distances, gradient_errors
from model.query.representation import typicality
from model.query.tandem import (
    MOST_TYPICAL_LABELS_PER_CLASS,
    RANDOM_SHARE,
    TYPICAL_LABELS_PER_CLASS,
    UNCERTAIN_PER_CHOICE,
    diverse_order,
)
from model.query.uncertainty import entropy, least_confidence, narrowness

by_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
UNCERTAIN = ("least_confident", "margin", "entropy")


def make_pool(
    seed: int = 0,
    *,
    n_images: int = 60,
    n_labelled: int = 12,
    n_classes: int = 3,
    multiple: bool = False,
    n_dimensions: int = 6,
) -> Pool:
    """Clusters, one per class, in coordinates."""
    random = np.random.default_rng(seed)
    centres = 3 * random.normal(size=(n_classes, n_dimensions))
    classes = random.integers(0, n_classes, n_images + n_labelled)
    rows = (centres[classes] + random.normal(size=(len(classes), n_dimensions))).astype(np.float32)
    logits = 2 * random.normal(size=(n_images, n_classes))
    weights = np.exp(logits)
    probabilities = weights / (1 + weights) if multiple else weights / weights.sum(axis=1, keepdims=True)
    labels = classes[n_images:]
    return Pool(
        features=rows[:n_images],
        probabilities=probabilities.astype(np.float32),
        labelled_features=rows[n_images:],
        labelled_targets=labels[:, None] == np.arange(n_classes) if multiple else labels,
        multiple=multiple,
    )


def ranked(strategy: str, pool: Pool, batch_size: int = 5, seed: int = 0) -> list[int]:
    return np.argsort(-score(strategy, pool, batch_size=batch_size, seed=seed).values).tolist()


def mature(pool: Pool) -> Pool:
    """The pool with labels enough for tandem to trust the model."""
    times = TYPICAL_LABELS_PER_CLASS * 3
    return replace(
        pool,
        labelled_features=np.concatenate([pool.labelled_features + shift for shift in range(times)]),
        labelled_targets=np.concatenate([pool.labelled_targets] * times),
    )


@by_strategy
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_images=st.integers(0, 40),
    n_labelled=st.integers(0, 20),
    n_classes=st.integers(1, 5),
    multiple=st.booleans(),
    known=st.booleans(),
    batch_size=st.integers(1, 50),
)
def test_every_image_has_a_score_of_its_own(
    strategy: str,
    seed: int,
    n_images: int,
    n_labelled: int,
    n_classes: int,
    multiple: bool,
    known: bool,
    batch_size: int,
) -> None:
    pool = make_pool(seed, n_images=n_images, n_labelled=n_labelled, n_classes=n_classes, multiple=multiple)
    if not known:
        pool = replace(pool, probabilities=None)
    scores = score(strategy, pool, batch_size=batch_size, seed=seed)
    assert scores.values.shape == scores.at_random.shape == (n_images,)
    assert len(set(scores.values.tolist())) == n_images
    assert ((scores.values > 0) & (scores.values <= 1)).all()
    again = score(strategy, pool, batch_size=batch_size, seed=seed)
    np.testing.assert_array_equal(again.values, scores.values)
    batch = np.argsort(-scores.values)[:batch_size]
    assert set(np.flatnonzero(scores.at_random)) <= set(batch)


@pytest.mark.parametrize(
    ("strategy", "measure"),
    [("least_confident", least_confidence), ("margin", narrowness), ("entropy", entropy)],
)
@pytest.mark.parametrize("multiple", [False, True])
def test_uncertainty_decides_the_order(strategy: str, measure: Any, multiple: bool) -> None:
    pool = make_pool(multiple=multiple)
    assert pool.probabilities is not None
    expected = np.argsort(-measure(pool.probabilities, multiple=multiple), kind="stable")
    assert ranked(strategy, pool) == expected.tolist()


@by_strategy
def test_what_is_equal_is_asked_in_an_order_that_the_seed_decides(strategy: str) -> None:
    pool = make_pool()
    assert pool.probabilities is not None
    # On a circle about a single label, all equally uncertain, every image is as good as any other.
    angles = np.arange(60) * 2 * np.pi / 60
    alike = replace(
        pool,
        features=np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        labelled_features=np.zeros((12, 2), np.float32),
        probabilities=np.full((60, 3), 1 / 3, np.float32),
    )
    firsts = {ranked(strategy, alike, seed=seed)[0] for seed in range(12)}
    assert len(firsts) >= 5


@pytest.mark.parametrize("strategy", [*UNCERTAIN, "k_centre"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(strategy: str, seed: int) -> None:
    pool = make_pool(seed)
    assert pool.probabilities is not None
    shuffle = np.random.default_rng(seed).permutation(60)
    shuffled = replace(pool, features=pool.features[shuffle], probabilities=pool.probabilities[shuffle])
    assert shuffle[ranked(strategy, shuffled)].tolist() == ranked(strategy, pool)


@by_strategy
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_copies_are_not_asked_twice_in_a_batch(strategy: str, noise: float) -> None:
    pool = mature(make_pool(n_images=20))
    assert pool.probabilities is not None
    copies = np.tile(np.arange(20), 3)
    random = np.random.default_rng(0)
    features = pool.features[copies] + noise * random.normal(size=(60, 6)).astype(np.float32)
    tripled = replace(pool, features=features, probabilities=pool.probabilities[copies])
    if noise:
        # With originals of their own around them, noisy copies are what is unusually close.
        others = make_pool(7, n_images=200)
        assert others.probabilities is not None
        tripled = replace(
            tripled,
            features=np.concatenate([features, others.features]),
            probabilities=np.concatenate([tripled.probabilities, others.probabilities]),
        )
        copies = np.append(copies, 20 + np.arange(200))
    asked = copies[ranked(strategy, tripled, batch_size=10)[:10]]
    assert len(set(asked.tolist())) == 10


@by_strategy
def test_what_is_labelled_already_is_asked_last_of_all_needed(strategy: str) -> None:
    pool = make_pool()
    known = replace(pool, labelled_features=pool.features[:30], labelled_targets=np.arange(30) % 3)
    assert min(ranked(strategy, known, batch_size=30)[:30]) >= 30


@by_strategy
def test_images_all_alike_are_still_all_ranked(strategy: str) -> None:
    pool = make_pool()
    alike = replace(pool, features=np.ones_like(pool.features), labelled_features=np.ones_like(pool.labelled_features))
    assert sorted(ranked(strategy, alike)) == list(range(60))


def test_typical_images_come_from_clusters_without_a_label() -> None:
    random = np.random.default_rng(3)
    centres = 20 * random.normal(size=(6, 8))
    clusters = np.arange(120) % 6
    rows = (centres[clusters] + random.normal(size=(120, 8))).astype(np.float32)
    pool = replace(
        make_pool(n_images=120, n_dimensions=8),
        features=rows,
        labelled_features=rows[:2] + 0.5,
        labelled_targets=np.array([0, 1]),
    )
    assert set(clusters[ranked("typicality", pool, batch_size=4)[:4]]) == {2, 3, 4, 5}


def test_typicality_is_the_inverse_mean_distance_to_neighbours() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [100.0]], np.float32)
    values = typicality(rows, np.array([0, 0, 0, 1]), np.random.default_rng(0))
    np.testing.assert_allclose(values, [1 / 2, 1 / 1.5, 1 / 2.5, 0], rtol=1e-5)


def test_tandem_turns_from_typical_to_uncertain_images() -> None:
    young, old = make_pool(), mature(make_pool())
    assert ranked("tandem", young) == ranked("typicality", young)
    assert old.probabilities is not None
    uncertain = narrowness(old.probabilities, multiple=False)
    scores = score("tandem", old, batch_size=4, seed=0)
    chosen = [row for row in np.argsort(-scores.values)[:4] if not scores.at_random[row]]
    assert uncertain[chosen].min() >= np.sort(uncertain)[-4 * UNCERTAIN_PER_CHOICE]
    assert ranked("tandem", replace(old, probabilities=None)) == ranked("typicality", replace(old, probabilities=None))


@pytest.mark.parametrize("multiple", [False, True])
def test_tandem_asks_what_is_typical_until_every_class_has_a_label_or_is_too_rare_to_wait_for(multiple: bool) -> None:
    pool = make_pool(multiple=multiple)
    assert pool.probabilities is not None
    for labels_per_class in (TYPICAL_LABELS_PER_CLASS, MOST_TYPICAL_LABELS_PER_CLASS):
        n_labels = 3 * labels_per_class
        classes = np.arange(n_labels) % 2
        one_missing = replace(
            pool,
            labelled_features=np.random.default_rng(0).normal(size=(n_labels, 6)).astype(np.float32),
            labelled_targets=classes[:, None] == np.arange(3) if multiple else classes,
        )
        is_typical = ranked("tandem", one_missing) == ranked("typicality", one_missing)
        assert is_typical == (labels_per_class < MOST_TYPICAL_LABELS_PER_CLASS)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_groups=st.integers(2, 8))
def test_an_uncertain_batch_has_an_image_of_each_group(seed: int, n_groups: int) -> None:
    random = np.random.default_rng(seed)
    groups = np.arange(UNCERTAIN_PER_CHOICE * n_groups) % n_groups
    rows = 50 * np.eye(n_groups, 10)[groups] + random.normal(size=(len(groups), 10))
    pool = replace(
        make_pool(), features=rows.astype(np.float32), labelled_features=np.zeros((12, 10)), probabilities=None
    )
    uncertainty = random.uniform(0.5, 1, len(groups))
    batch = diverse_order(pool, uncertainty, n_groups, random)[:n_groups]
    assert set(groups[batch]) == set(range(n_groups))
    assert np.argsort(-uncertainty[batch]).tolist() == list(range(n_groups))


def test_clusters_lean_towards_rows_of_weight() -> None:
    rows = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
    weights = np.array([3.0, 1.0, 1.0, 1.0], np.float32)
    centres = cluster_centres(rows, 2, np.random.default_rng(0), weights)
    np.testing.assert_allclose(np.sort(centres[:, 0]), [0.25, 10.5])


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_images_that_leave_no_doubt_are_still_all_ranked(certain: float) -> None:
    pool = mature(make_pool())
    sure = np.tile(np.array([1 - certain, certain, 0], np.float32), (60, 1))
    assert sorted(ranked("tandem", replace(pool, probabilities=sure))) == list(range(60))


@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_the_random_share_is_what_it_says_and_drawn_from_all(batch_size: int) -> None:
    pool = mature(make_pool())
    n_rounds = 400 // batch_size**0.5
    drawn = np.array([score("tandem", pool, batch_size=batch_size, seed=s).at_random for s in range(int(n_rounds))])
    assert drawn.sum() / (len(drawn) * batch_size) == pytest.approx(RANDOM_SHARE, abs=0.05)
    if batch_size == 40:
        assert (drawn.sum(axis=0) > 0).mean() > 0.7


def test_only_random_choices_are_marked_as_such() -> None:
    pool = make_pool()
    for strategy in STRATEGIES:
        marked = score(strategy, pool, batch_size=7, seed=1).at_random
        assert marked.sum() == (7 if strategy == "random" else 0)
    assert score("margin", replace(pool, probabilities=None), batch_size=7, seed=1).at_random.sum() == 7


@pytest.mark.parametrize("measure", [least_confidence, narrowness, entropy])
def test_several_classes_are_measured_as_sets_of_independent_classes(measure: Any) -> None:
    independent = np.random.default_rng(0).uniform(size=(30, 3))
    sets = np.stack(
        [
            np.prod([independent[:, c] if index >> c & 1 else 1 - independent[:, c] for c in range(3)], axis=0)
            for index in range(8)
        ],
        axis=1,
    )
    np.testing.assert_allclose(measure(independent, multiple=True), measure(sets, multiple=False), rtol=1e-6)


def test_certain_images_have_no_uncertainty() -> None:
    for multiple in (False, True):
        certain = np.eye(3, dtype=np.float32)
        for measure in (least_confidence, narrowness, entropy):
            np.testing.assert_allclose(measure(certain, multiple=multiple), 0, atol=1e-9)
    np.testing.assert_allclose(narrowness(np.ones((2, 1), np.float32), multiple=False), 0)


def test_feature_rows_are_reduced_first() -> None:
    pool = make_pool(n_dimensions=20)
    blocks = replace(
        pool,
        features=np.abs(pool.features).astype(np.float16),
        labelled_features=np.abs(pool.labelled_features).astype(np.float16),
        block_sizes=(8, 12),
    )
    for strategy in STRATEGIES:
        assert sorted(ranked(strategy, blocks)) == list(range(60))
    with pytest.raises(ValueError, match="blocks"):
        score("margin", replace(blocks, block_sizes=(8, 13)), batch_size=1, seed=0)


def test_arguments_that_do_not_fit_are_refused() -> None:
    pool = make_pool()
    with pytest.raises(ValueError, match=f"'best'.*{DEFAULT_STRATEGY}"):
        score("best", pool, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="not 0"):
        score("margin", pool, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="same backbone"):
        replace(pool, features=pool.features[:, :2])
    with pytest.raises(ValueError, match="12 labelled images"):
        replace(pool, labelled_targets=np.zeros(3, int))
    with pytest.raises(ValueError, match="multiple=True"):
        replace(pool, multiple=True)
    with pytest.raises(ValueError, match="do not fit 60 images"):
        replace(pool, probabilities=np.ones((3, 3), np.float32))


def test_clusters_of_clear_groups_are_the_groups() -> None:
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    rows = np.repeat(centres, 20, axis=0) + np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    found, _ = nearest(rows, cluster_centres(rows, 3, np.random.default_rng(0)))
    assert [len(set(found[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(cluster_centres(np.ones((9, 2), np.float32), 4, np.random.default_rng(0))) == 1


@pytest.mark.parametrize("multiple", [False, True])
def test_gradients_need_not_be_written_out(multiple: bool) -> None:
    pool = make_pool(multiple=multiple)
    assert pool.probabilities is not None
    errors = gradient_errors(pool.probabilities, multiple=multiple)
    gradients = (errors[:, :, None] * pool.features[:, None, :]).reshape(60, -1)
    squares, distances_to = gradient_distances(errors, pool.features)
    np.testing.assert_allclose(squares, (gradients**2).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(distances_to(3), ((gradients - gradients[3]) ** 2).sum(axis=1), rtol=1e-3, atol=1e-4)
