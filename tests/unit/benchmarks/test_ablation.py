"""What the benchmark of the recipe's parts changes, and how it holds the parts against the whole."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import ablation_heads
from benchmarks.ablation import plan, summarise
from benchmarks.ablation_heads import HEADS
from benchmarks.ablation_networks import CHANGES
from benchmarks.image_sets import Split
from benchmarks.learning_runs import FeatureMemory, Outcome
from benchmarks.networks import Pretrained
from model.finetuning import TrainingConfig
from model.transforms import to_views
from tests.unit.benchmarks.test_learning import folder, make_run

BLOCK_SIZES = (20, 12, 16)
SAME_AS_HEAD = {"head with pool, unasked", "head, more to choose from"}
"""They differ where cross-validation would choose otherwise."""
SIDE = 64


def rows_of(paths: Sequence[Path], classes: Sequence[int], seed: int) -> dict[Path, NDArray[np.float32]]:
    """Return features above zero, as those of networks are, with a little of the class in some of each block."""
    generator = np.random.default_rng(seed)
    rows = generator.gamma(1.0, 1.0, (len(paths), sum(BLOCK_SIZES)))
    rows[:, ::4] *= 1 + 0.8 * np.asarray(classes)[:, None]
    return dict(zip(paths, rows.astype(np.float32), strict=True))


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Twelve labelled images of two classes, eighty others, and what a network sees in them."""
    drawn = Split(
        train=folder("train", *["cat", "dog"] * 6),
        pool=tuple(Path(f"pool{row}.jpg") for row in range(80)),
        test=folder("test", *["cat", "dog"] * 20),
    )
    known: dict[Path, NDArray[np.float32]] = {}
    for seed, paths in enumerate((drawn.train.paths, drawn.pool, drawn.test.paths)):
        known |= rows_of(paths, [row % 2 for row in range(len(paths))], seed)

    def embed(backbone: Any, device: str, paths: Sequence[Path], views: object = to_views) -> NDArray[np.float16]:
        del device
        seen = np.stack([known[path] for path in paths]) if paths else np.empty((0, sum(BLOCK_SIZES)))
        blurred = np.roll(seen, 1, axis=1) * (
            0.2 * (backbone.n_views != 2) + 0.3 * (views is not to_views or backbone.side is not None)
        )
        return (seen + blurred).astype(np.float16)

    def backbone(pretrained: Pretrained, n_views: int, side: int | None = None) -> Any:
        digest = f"{pretrained.name} {n_views} {side}"
        return SimpleNamespace(digest=digest, n_views=n_views, side=side, block_sizes=BLOCK_SIZES)

    monkeypatch.setattr(ablation_heads, "_embed", embed)
    monkeypatch.setattr(ablation_heads, "_backbone", backbone)
    return drawn


def learn(method: Callable[..., Outcome], split: Split) -> Outcome:
    return method(split, Pretrained(name="net", weights=Path("net.pth")), 1, "cpu", FeatureMemory())


class TestHeads:
    @pytest.mark.parametrize("name", [name for name in HEADS if name != "head"])
    def test_a_variant_is_another_head_and_leaves_the_recipe_as_it_was(self, split: Split, name: str) -> None:
        before = learn(HEADS["head"], split)
        variant = learn(HEADS[name], split)
        after = learn(HEADS["head"], split)
        assert (variant.log_loss == before.log_loss) == (name in SAME_AS_HEAD)
        assert 0 < variant.macro_f1 <= 1
        assert (after.log_loss, after.ece, after.note) == (before.log_loss, before.ece, before.note)

    def test_what_cross_validation_may_choose_is_what_the_variant_says(self, split: Split) -> None:
        notes = {name: learn(HEADS[name], split).note for name in ("head", "LDA", "logistic regression")}
        assert notes == {"head": "pool", "LDA": "lda", "logistic regression": "logistic"}
        assert learn(HEADS["head without pseudo-labels"], split).note == "labelled"

    def test_label_spreading_fills_in_what_a_draw_did_not_label(self, split: Split) -> None:
        del split
        rows = np.concatenate([np.zeros((12, 2)), np.ones((12, 2))]).astype(np.float32)
        rows += np.random.default_rng(0).normal(0, 0.01, rows.shape).astype(np.float32)
        labelled = np.isin(np.arange(24), (0, 12))
        guess = ablation_heads._spread(rows[labelled], np.array([0, 1]), rows[~labelled], 2, to=rows)
        assert guess.argmax(axis=1).tolist() == [0] * 12 + [1] * 12
        several = ablation_heads._spread(rows[labelled], np.eye(2, dtype=bool), rows[~labelled], 2, to=rows)
        assert (several > 0.5).tolist() == [[True, False]] * 12 + [[False, True]] * 12


class TestNetworks:
    @pytest.mark.parametrize("name", list(CHANGES))
    def test_every_change_finds_its_place_and_is_undone(self, split: Split, name: str) -> None:
        before = TrainingConfig.for_labels(300, 6)
        with ExitStack() as changed:
            for change in CHANGES[name]:
                changed.enter_context(change(split))
        assert TrainingConfig.for_labels(300, 6) == before

    def test_a_change_of_the_configuration_is_one_of_what_the_recipe_chose(self, split: Split) -> None:
        (change,) = CHANGES["network without mixup"]
        before = TrainingConfig.for_labels(300, 6)
        with change(split):
            assert TrainingConfig.for_labels(300, 6) == replace(before, mixup_alpha=0.0)


class TestPlan:
    def test_heads_everywhere_and_networks_in_one_place(self) -> None:
        arguments = argparse.Namespace(
            methods=["LDA", "network"],
            seeds=[1, 2],
            backbones=["a", "b"],
            sizes=[5, 50],
            tuned_sets=["trash"],
            tuned_backbones=["b"],
            tuned_sizes=[25],
        )
        planned = plan(arguments, ["pets", "tools"])
        assert [each.method for each in planned] == ["LDA"] * 16 + ["network"] * 2
        assert {each[:3] for each in planned[-2:]} == {("trash", "b", 25)}


class TestSummary:
    def test_a_variant_is_held_against_the_recipe_on_the_same_draws(self) -> None:
        runs = [
            *(make_run("head", 0.6, seed=seed) for seed in (1, 2)),
            make_run("LDA", 0.5, seed=1),
            make_run("LDA", 0.58, seed=2),
            make_run("LDA", 0.1, seed=3),
        ]
        whole, lda = summarise(runs)["head, 5 labels per class"]
        assert (whole["points"], whole["standard_error"]) == (0, 0)
        assert (lda["runs"], lda["points"]) == (2, pytest.approx(-6))
        assert lda["standard_error"] == pytest.approx(4)  # half of the distance between -10 and -2

    def test_what_is_fine_tuned_is_held_against_the_head_too(self) -> None:
        scores = {"head": 0.6, "network": 0.7, "last block on stored maps": 0.65}
        runs = [make_run(method, score, seed=1) for method, score in scores.items()]
        summary = summarise([*runs, make_run("head", 0.1, seed=2)])
        assert [row["points"] for row in summary["fine-tuned, beside the head"]] == pytest.approx([0, 10, 5])
        assert [row["runs"] for row in summary["fine-tuned, beside the head"]] == [1, 1, 1]
        assert [row["points"] for row in summary["by set, beside the head"]] == pytest.approx([5])
        assert [row["points"] for row in summary["beside the whole network"]] == pytest.approx([-5])

    def test_variants_of_the_network_are_held_against_the_whole_network(self) -> None:
        runs = [make_run(method, score, size=50) for method, score in (("head", 0.9), ("network", 0.7))]
        summary = summarise([*runs, make_run("last block on stored maps", 0.8, size=50)])
        rows = {row["variant"]: row["points"] for row in summary["network, 50 labels per class"]}
        assert rows == {"network": 0, "last block on stored maps": pytest.approx(10)}
