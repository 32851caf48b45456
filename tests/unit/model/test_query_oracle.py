"""scikit-activeml as an oracle for the strategies that it has too."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.query import Pool, score
from model.query.geometry import cluster_centres, nearest, squared_distances
from model.query.gradients import gradient_distances, gradient_errors
from model.query.representation import squared_radius
from model.query.tandem import diverse_order
from model.query.uncertainty import narrowness


def make_pool(*, n_images: int = 60, n_classes: int = 3) -> Pool:
    random = np.random.default_rng(0)
    classes = random.integers(0, n_classes, n_images + 12)
    rows = 3 * random.normal(size=(n_classes, 6))[classes] + random.normal(size=(len(classes), 6))
    weights = np.exp(2 * random.normal(size=(n_images, n_classes)))
    return Pool(
        features=rows[:n_images].astype(np.float32),
        probabilities=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        labelled_features=rows[n_images:].astype(np.float32),
        labelled_targets=classes[n_images:],
        multiple=False,
    )


def ranked(strategy: str, pool: Pool, batch_size: int = 5) -> list[int]:
    return np.argsort(-score(strategy, pool, batch_size=batch_size, seed=0).values).tolist()


@pytest.fixture(scope="module")
def oracle() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skactiveml.pool as strategies
    return strategies


def known_and_unknown(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([pool.features, pool.labelled_features])
    return rows, np.append(np.full(len(pool.features), np.nan), pool.labelled_targets)


@pytest.mark.parametrize(
    ("strategy", "method"),
    [("least_confident", "least_confident"), ("margin", "margin_sampling"), ("entropy", "entropy")],
)
def test_uncertainty_agrees_with_scikit_activeml(strategy: str, method: str, oracle: Any) -> None:
    pool = make_pool()
    utilities = oracle.uncertainty_scores(pool.probabilities, method=method)
    assert ranked(strategy, pool) == np.argsort(-utilities, kind="stable").tolist()


def test_k_centre_agrees_with_scikit_activeml(oracle: Any) -> None:
    pool = make_pool()
    rows, targets = known_and_unknown(pool)
    expected = oracle.CoreSet(random_state=0).query(rows, targets, batch_size=8)
    assert ranked("k_centre", pool, batch_size=8)[:8] == expected.tolist()


def test_typicality_agrees_with_scikit_activeml(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.query.representation.N_NEIGHBOURS", 5)
    pool = make_pool(n_images=200, n_classes=5)
    rows, targets = known_and_unknown(pool)
    everything = rows - rows[:200].mean(axis=0)

    class OurClusters:
        def __init__(self, n_clusters: int) -> None:
            self.n_clusters = n_clusters

        def fit_predict(self, rows: np.ndarray) -> np.ndarray:
            del rows
            both = np.concatenate([everything[200:], everything[:200]]).astype(np.float32)
            members, _ = nearest(both, cluster_centres(both, self.n_clusters, np.random.default_rng(0)))
            return np.append(members[12:], members[:12])

    expected = oracle.TypiClust(random_state=0, cluster_algo=OurClusters).query(rows, targets, batch_size=1)
    assert ranked("typicality", pool, batch_size=1)[:1] == expected.tolist()


def test_coverage_agrees_with_scikit_activeml(oracle: Any) -> None:
    pool = replace(
        make_pool(n_images=150), labelled_features=np.empty((0, 6), np.float32), labelled_targets=np.empty(0, int)
    )
    rows = pool.features - pool.features.mean(axis=0)
    radius = squared_radius(rows, squared_distances(rows, rows), 3, np.random.default_rng(0)) ** 0.5
    strategy = oracle.ProbCover(random_state=0, n_classes=3, deltas=[radius])
    with warnings.catch_warnings():
        # It warns that it did not look for a radius, having been given one.
        warnings.filterwarnings("ignore", "The maximum purity", UserWarning)
        expected = strategy.query(rows, np.full(150, np.nan), batch_size=6)

    def covered(batch: list[int]) -> float:
        return float((squared_distances(rows, rows[batch]) <= radius**2).any(axis=1).mean())

    assert covered(ranked("coverage", pool, batch_size=6)[:6]) == pytest.approx(covered(expected.tolist()), abs=0.03)


def test_badge_agrees_with_scikit_activeml(oracle: Any) -> None:
    from skactiveml.base import SkactivemlClassifier

    pool = make_pool()
    assert pool.probabilities is not None
    rows = pool.features - pool.features.mean(axis=0)
    probabilities = pool.probabilities

    class Fixed(SkactivemlClassifier):
        def fit(self, *_: np.ndarray) -> "Fixed":
            return self

        def predict_proba(self, _: np.ndarray) -> np.ndarray:
            return probabilities

    strategy = oracle.Badge(random_state=0)
    first, utilities = strategy.query(
        rows, np.full(60, np.nan), Fixed(classes=[0, 1, 2]), fit_clf=False, batch_size=2, return_utilities=True
    )
    assert ranked("badge", pool)[0] == first[0]
    # There the origin counts as chosen too.
    squares, distances_to = gradient_distances(gradient_errors(probabilities, multiple=False), rows)
    distances = np.minimum(squares, distances_to(first[0]))
    np.testing.assert_allclose(distances / distances.sum(), np.nan_to_num(utilities[1]), atol=1e-4)


def test_the_choice_among_uncertain_images_agrees_with_scikit_activeml(oracle: Any) -> None:
    from skactiveml.base import SkactivemlClassifier

    random = np.random.default_rng(0)
    groups = np.arange(20) % 4
    rows = (50 * np.eye(4, 6)[groups] + random.normal(size=(20, 6))).astype(np.float32)
    weights = np.exp(random.normal(size=(20, 3)))
    probabilities = weights / weights.sum(axis=1, keepdims=True)

    class Fixed(SkactivemlClassifier):
        def fit(self, *_: np.ndarray) -> "Fixed":
            return self

        def predict_proba(self, _: np.ndarray) -> np.ndarray:
            return probabilities

    strategy = oracle.Clue(random_state=0, method="margin_sampling")
    expected = strategy.query(rows, np.full(20, np.nan), Fixed(classes=[0, 1, 2]), fit_estimator=False, batch_size=4)
    pool = replace(make_pool(), features=rows, probabilities=None)
    chosen = diverse_order(pool, narrowness(probabilities, multiple=False), 4, random)[:4]
    assert set(chosen.tolist()) == set(expected.tolist())
