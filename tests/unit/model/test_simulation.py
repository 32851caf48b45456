from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from model import simulation
from model.logits import LinearMap
from model.opinion import Opinion
from model.query import STRATEGIES, Pool, Scores, score
from model.simulation import Images, LabelledSet, Round, replay, simulate

BLOCK_SIZES = (4, 16)


def make_images(seed: int, n_images: int = 90, *, multiple: bool = False) -> Images:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, sum(BLOCK_SIZES)))
    targets = random.random((n_images, 3)) < 0.4 if multiple else random.integers(0, 3, n_images)
    means = targets @ centres if multiple else centres[targets]
    features = np.maximum(means + random.normal(size=means.shape), 0).astype(np.float16)
    return Images(features=features, targets=targets)


def rounds_of(
    images: Images, strategy: str = "tandem", budgets: tuple[int, ...] = (3, 12, 30), seed: int = 0, batch_size: int = 8
) -> list[Round]:
    return list(
        simulate(
            images,
            make_images(99, 200, multiple=images.targets.ndim == 2),
            n_classes=3,
            block_sizes=BLOCK_SIZES,
            strategy=strategy,
            budgets=budgets,
            batch_size=batch_size,
            seed=seed,
        )
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize(
    ("strategy", "multiple"), [*((strategy, False) for strategy in STRATEGIES), ("margin", True), ("badge", True)]
)
def test_labels_make_the_model_better(strategy: str, multiple: bool) -> None:
    rounds = rounds_of(make_images(1, multiple=multiple), strategy)
    assert [each.n_labels for each in rounds] == [3, 12, 30]
    assert rounds[-1].accuracy > (0.4 if multiple else 0.6)
    assert rounds[-1].macro_f1 > 0.55
    assert all(0 <= each.accuracy <= 1 for each in rounds)


def test_the_same_seed_is_the_same_replay_and_another_one_another() -> None:
    images = make_images(1)
    assert rounds_of(images, "random") == rounds_of(images, "random")
    assert rounds_of(images, "random") != rounds_of(images, "random", seed=1)


def test_no_image_is_asked_twice_and_what_is_learned_grows_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(1)
    pools: list[Pool] = []

    def record(strategy: str, pool: Pool, *, batch_size: int, seed: int) -> Scores:
        pools.append(pool)
        return score(strategy, pool, batch_size=batch_size, seed=seed)

    monkeypatch.setattr(simulation, "score", record)
    rounds_of(images, budgets=(10, 23), batch_size=6)
    assert [len(pool.labelled_targets) for pool in pools] == [0, 6, 10, 16, 22]
    for pool in pools:
        rows = np.concatenate([pool.features, pool.labelled_features])
        assert sorted(map(bytes, rows)) == sorted(map(bytes, images.features))
    assert pools[0].probabilities is None
    assert pools[-1].probabilities is not None
    pools.clear()
    rounds_of(images, "random", budgets=(10, 23), batch_size=6)
    assert [len(pool.labelled_targets) for pool in pools] == [0, 10]


def test_while_there_is_one_class_only_it_is_the_answer() -> None:
    images = make_images(1)
    alike = replace(images, targets=np.ones_like(images.targets))
    (first,) = rounds_of(alike, budgets=(5,))
    share = (make_images(99, 200).targets == 1).mean()
    assert first.accuracy == pytest.approx(share)


def test_budgets_beyond_the_images_are_left_out() -> None:
    assert [each.n_labels for each in rounds_of(make_images(1, 20), budgets=(5, 20, 21))] == [5, 20]


def test_a_replay_of_several_seeds_is_a_curve() -> None:
    images, test_images = make_images(1), make_images(99, 200)
    labelled = LabelledSet(
        name="pets", backbone="resnet18", images=images, test_images=test_images, n_classes=3, block_sizes=BLOCK_SIZES
    )
    seen: list[tuple[int, int]] = []
    curve = replay(
        labelled, "random", budgets=(3, 12), batch_size=8, n_seeds=2, on_round=lambda *reached: seen.append(reached)
    )
    assert seen == [(0, 0), (0, 3), (0, 12), (1, 0), (1, 3), (1, 12)]
    assert (curve.set_name, curve.backbone, curve.strategy, curve.n_labels) == ("pets", "resnet18", "random", [3, 12])
    for seed in (0, 1):
        rounds = rounds_of(images, "random", (3, 12), seed)
        assert curve.accuracy[seed] == [round(each.accuracy, 4) for each in rounds]
        assert curve.macro_f1[seed] == [round(each.macro_f1, 4) for each in rounds]


def test_what_the_backbone_was_pretrained_to_say_counts_as_it_does_for_annotators() -> None:
    centres = np.maximum(np.random.default_rng(0).normal(size=(3, sum(BLOCK_SIZES))), 0)[:, -BLOCK_SIZES[-1] :]
    knows_all = LinearMap(
        weight=centres.T.astype(np.float32), bias=(-0.5 * (centres**2).sum(axis=1)).astype(np.float32)
    )
    known = LabelledSet(
        name="known",
        backbone="none",
        images=make_images(1),
        test_images=make_images(99, 200),
        n_classes=3,
        block_sizes=BLOCK_SIZES,
        opinion=Opinion(layers=(knows_all,), groups=((0,), (1,), (2,))),
    )
    curves = [
        replay(each, "random", budgets=[6], batch_size=6, n_seeds=3) for each in (known, replace(known, opinion=None))
    ]
    with_opinion, without = (np.mean(curve.accuracy) for curve in curves)
    assert with_opinion > without + 0.05
