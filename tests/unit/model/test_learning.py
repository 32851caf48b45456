import hashlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import islice
from json import dumps
from pathlib import Path

import numpy as np
import pytest

from model import learning
from model.checkpoint import save_checkpoint
from model.evaluation import evaluate
from model.folds import NetworkSplit
from model.learning import Examples, Learned, TooFewLabels, fold_of, learn
from model.logits import LinearMap
from model.opinion import Opinion

BLOCK_SIZES = (8, 12, 40)
NOISE = 1.6


def make_features(classes: np.ndarray, seed: int, noise: float = NOISE) -> np.ndarray:
    """Rectified clusters: ``classes`` are indices, (n,), or memberships, (n, k)."""
    centres = np.random.default_rng(0).normal(size=(1000, sum(BLOCK_SIZES)))
    means = centres[classes] if classes.ndim == 1 else classes @ centres[: classes.shape[1]]
    scatter = noise * np.random.default_rng(seed).normal(size=means.shape)
    return np.maximum(means + scatter, 0).astype(np.float16)


def make_examples(targets: np.ndarray, *, seed: int = 1) -> Examples:
    return Examples(
        features=make_features(targets, seed),
        targets=targets,
        digests=tuple(hashlib.sha256(f"{seed} {index}".encode()).hexdigest() for index in range(len(targets))),
    )


def split_of(digests: Iterable[str]) -> NetworkSplit:
    """Held out are these alone."""
    return NetworkSplit(seen=frozenset(), held_out={digest: digest for digest in digests})


def names(n_classes: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(n_classes))


def learn_from(examples: Examples, n_classes: int, pool: np.ndarray | None = None) -> Learned:
    multiple = examples.targets.ndim == 2
    return learn(examples, names(n_classes), multiple=multiple, block_sizes=BLOCK_SIZES, pool=pool)


def assert_sound(learned: Learned, examples: Examples) -> None:
    """Everything finite, of the right shape, and usable."""
    dumps([asdict(learned.calibrated), asdict(learned.uncalibrated)], allow_nan=False)
    n_judged = int(examples.judged.sum())
    assert learned.calibrated.n == learned.uncalibrated.n == len(learned.out_of_fold.digests) == n_judged
    for probabilities in (learned.out_of_fold.probabilities, learned.predictor.predict_proba(examples.features)):
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        if not learned.predictor.multiple:
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)
    assert len(learned.predictor.suggest(examples.features)) == len(examples.targets)


@pytest.mark.parametrize("with_pool", [False, True])
def test_clear_classes_are_learned_and_the_report_tells_the_truth(with_pool: bool) -> None:
    examples = make_examples(np.arange(100) % 4)
    pool = make_features(np.arange(300) % 4, 2) if with_pool else None
    learned = learn_from(examples, 4, pool)
    assert_sound(learned, examples)
    targets = np.arange(800) % 4
    fresh = evaluate(learned.predictor.predict_proba(make_features(targets, 3)), targets, multiple=False)
    assert fresh.accuracy > 0.85
    assert learned.calibrated.accuracy == pytest.approx(fresh.accuracy, abs=0.1)
    assert fresh.ece < 0.1
    assert fresh.log_loss < 0.6


def test_a_head_is_as_sure_as_it_is_right_though_those_that_judge_it_learned_from_fewer_labels() -> None:
    learned = learn_from(make_examples(np.arange(20) % 4), 4)
    targets = np.arange(800) % 4
    fresh = evaluate(learned.predictor.predict_proba(make_features(targets, 3)), targets, multiple=False)
    assert fresh.ece < 0.1


@pytest.mark.parametrize("n_labels", [2, 4])
def test_heads_that_could_not_be_tested_are_not_sure_of_anything(n_labels: int) -> None:
    """By chance all labelled images share a fold: without it there is nothing to learn from."""
    examples = make_examples(np.arange(n_labels) % 2)
    numbered = (str(number) for number in range(1000))
    digests = tuple(islice((digest for digest in numbered if fold_of(digest) == 2), n_labels))
    learned = learn_from(replace(examples, digests=digests), 2)
    sure = learned.predictor.predict_proba(make_features(np.arange(400) % 2, 3)).max(axis=1)
    assert sure.mean() < 0.95


def test_a_class_of_which_all_images_come_last_is_learned() -> None:
    """With several classes per image, and more images than logistic regression looks at."""
    random = np.random.default_rng(0)
    means = 0.35 * random.normal(size=(20, 128))

    def draw(n_images: int) -> tuple[np.ndarray, np.ndarray]:
        targets = random.random((n_images, 20)) < 0.08
        return (targets @ means + random.normal(size=(n_images, 128))).astype(np.float16), targets

    features, targets = draw(1300)
    fresh, truth = draw(1000)
    order = np.argsort(targets[:, 0], kind="stable")
    examples = Examples(
        features=features[order],
        targets=targets[order],
        digests=tuple(map(str, order)),
    )
    predictor = learn(examples, names(20), multiple=True, block_sizes=(128,)).predictor
    assert predictor.thresholds is not None
    found = predictor.predict_proba(fresh)[:, 0] >= predictor.thresholds[0]
    assert found[truth[:, 0]].mean() > 0.5


def test_prediction_sets_cover_with_one_label_per_class_as_often_as_reported() -> None:
    covered, reported = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        targets = random.integers(50, size=1050)
        features = 0.5 * random.normal(size=(50, 128))[targets] + random.normal(size=(1050, 128))
        examples = Examples(
            features=features[:50].astype(np.float16),
            targets=targets[:50],
            digests=tuple(f"{seed} {index}" for index in range(50)),
        )
        learned = learn(examples, names(50), multiple=False, block_sizes=(128,))
        sets = learned.predictor.prediction_sets(features[50:].astype(np.float16))
        covered.append(sets[np.arange(1000), targets[50:]].mean())
        reported.append(learned.conformal.coverage)
    assert np.mean(covered) > np.mean(reported) - 0.03


def test_several_classes_per_image_are_learned() -> None:
    random = np.random.default_rng(5)
    examples = make_examples(random.random((120, 3)) < 0.4)
    learned = learn_from(examples, 3, make_features(random.random((200, 3)) < 0.4, 6))
    assert_sound(learned, examples)
    targets = random.random((500, 3)) < 0.4
    thresholds = learned.predictor.thresholds
    assert thresholds is not None
    probabilities = learned.predictor.predict_proba(make_features(targets, 7))
    fresh = evaluate(probabilities, targets, multiple=True, thresholds=thresholds)
    assert fresh.macro_f1 > 0.75
    assert all(0.2 <= threshold <= 0.8 for threshold in thresholds)


@pytest.mark.parametrize("with_pool", [False, True])
def test_with_several_classes_per_image_each_probability_means_what_it_says(with_pool: bool) -> None:
    random = np.random.default_rng(50)
    errors = []
    for seed in range(60, 68):
        examples = make_examples(random.random((60, 3)) < 0.4, seed=seed)
        pool = make_features(random.random((200, 3)) < 0.4, 100 + seed) if with_pool else None
        calibrated = learn_from(examples, 3, pool).predictor
        targets = random.random((1000, 3)) < 0.4
        probabilities = [
            predictor.predict_proba(make_features(targets, 7))
            for predictor in (calibrated, replace(calibrated, temperature=1.0))
        ]
        errors.append([evaluate(each, targets, multiple=True).ece for each in probabilities])
    with_temperature, without = np.mean(errors, axis=0)
    assert with_temperature < 0.03
    assert with_temperature < 0.7 * without


@pytest.mark.parametrize(
    ("classes_of_pool", "method"),
    [
        pytest.param(np.arange(300) % 4, "pool", id="same classes"),
        pytest.param(500 + np.arange(300) % 7, "labelled", id="foreign"),
    ],
)
def test_a_pool_helps_unless_it_misleads(classes_of_pool: np.ndarray, method: str) -> None:
    examples, targets = make_examples(np.arange(40) % 4), np.arange(800) % 4
    alone = learn_from(examples, 4)
    helped = learn_from(examples, 4, make_features(classes_of_pool, 2))
    assert helped.method == method
    assert helped.candidates == ("pool", "labelled")
    accuracies = [
        evaluate(each.predictor.predict_proba(make_features(targets, 3)), targets, multiple=False).accuracy
        for each in (alone, helped)
    ]
    if method == "pool":
        assert accuracies[1] > accuracies[0] + 0.01
    else:
        assert accuracies[1] == pytest.approx(accuracies[0], abs=0.01)


def test_a_pool_helps_though_it_holds_a_tenth_as_many_of_some_classes() -> None:
    """Pseudo-labels of the many do not drown the labels of the few."""
    targets, of_pool = np.arange(800) % 4, np.repeat([0, 1, 2, 3], [300, 300, 30, 30])
    fresh = make_features(targets, 3)

    def recalls(seed: int, pool: np.ndarray | None) -> list[float]:
        learned = learn_from(make_examples(np.arange(12) % 4, seed=seed), 4, pool)
        report = evaluate(learned.predictor.predict_proba(fresh), targets, multiple=False)
        return [each.recall for each in report.per_class]

    seeds = range(100, 106)
    alone = np.mean([recalls(seed, None) for seed in seeds], axis=0)
    helped = np.mean([recalls(seed, make_features(of_pool, 100 + seed)) for seed in seeds], axis=0)
    assert helped.mean() > alone.mean() + 0.02
    assert helped.min() > alone.min()


@pytest.mark.parametrize("with_pool", [False, True])
def test_a_class_with_one_label_in_sixty_is_found(with_pool: bool) -> None:
    labels = np.repeat([0, 1], [600, 10])
    pool = make_features(np.repeat([0, 1], [900, 15]), 2) if with_pool else None
    learned = learn_from(make_examples(labels), 2, pool)
    targets = np.repeat([0, 1], 400)
    fresh = evaluate(learned.predictor.predict_proba(make_features(targets, 3)), targets, multiple=False)
    assert min(each.recall for each in fresh.per_class) > 0.8


def test_features_are_centred_on_all_images_with_and_without_a_label() -> None:
    examples, pool = make_examples(np.arange(40) % 4), make_features(500 + np.arange(160) % 4, 2)
    both = np.concatenate([examples.features, pool]).astype(np.float64)
    centre = learn_from(examples, 4, pool).predictor.head.centre
    np.testing.assert_allclose(centre, np.sqrt(both).mean(axis=0), rtol=1e-3)
    assert np.abs(centre - np.sqrt(both[:40]).mean(axis=0)).max() > 0.1


def test_no_image_has_a_say_in_which_method_judges_it() -> None:
    folds, targets = np.arange(300) % 3, np.arange(300) // 3 % 2
    right = 3.0 * np.eye(2, dtype=np.float32)[targets]
    in_two = (folds == 2)[:, None]
    logits = {"elsewhere": np.where(in_two, -right, right), "here": np.where(in_two, right, 0)}
    method, honest = learning._choose(logits, dict.fromkeys(logits, np.ones((300, 1), np.float32)), targets, folds)
    assert method == "here"
    np.testing.assert_array_equal(honest[folds == 2], -right[folds == 2])


def test_labels_that_mean_nothing_are_not_believed() -> None:
    targets = np.random.default_rng(11).integers(0, 2, 200)
    examples = replace(make_examples(targets), features=make_features(np.zeros(200, int), 12))
    learned = learn_from(examples, 2, make_features(np.zeros(200, int), 13))
    assert learned.calibrated.accuracy == pytest.approx(0.5, abs=0.12)
    assert learned.calibrated.log_loss < 0.8
    assert learned.calibrated.ece < learned.uncalibrated.ece


def test_a_wrong_label_surprises_no_more_than_others_are_sure() -> None:
    """The head fitted without it is far surer of everything than all the others, which it made doubt."""
    targets = np.arange(24) % 3
    examples = make_examples(targets, seed=0)
    wrong = replace(examples, targets=np.concatenate([[1], targets[1:]]))
    learned = learn_from(wrong, 3, make_features(np.arange(30) % 3, 99))
    log_odds = np.sort(np.log(learned.out_of_fold.probabilities), axis=1)
    sureness = log_odds[:, -1] - log_odds[:, -2]
    assert learned.out_of_fold.probabilities[0].argmax() == targets[0]
    assert sureness[0] < 4 * np.median(sureness[1:])


@pytest.mark.parametrize("multiple", [False, True])
def test_no_image_is_judged_by_what_its_own_label_taught(multiple: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The temperature comes from the other folds, whose heads did see this one: it is held to look at the heads alone.
    monkeypatch.setattr(learning, "fit_temperature", lambda *_, **__: 4.0)
    indices = np.arange(60) % 3
    targets = np.eye(3, dtype=bool)[indices] if multiple else indices
    examples = make_examples(targets)
    fold = np.array([fold_of(digest) for digest in examples.digests])
    changed = targets.copy()
    changed[fold == 2] = np.roll(targets[fold == 2], 1, axis=0)
    before, after = learn_from(examples, 3), learn_from(replace(examples, targets=changed), 3)
    old, new = before.out_of_fold.probabilities, after.out_of_fold.probabilities
    np.testing.assert_allclose(new[fold == 2], old[fold == 2], rtol=1e-2, atol=1e-4)
    assert np.abs(new[fold != 2] - old[fold != 2]).max() > 0.01


@pytest.mark.parametrize("backbone", ["pretrained", "fine-tuned", "fine-tuned before the doubles came"])
def test_no_image_is_judged_by_what_its_double_taught(backbone: str) -> None:
    # Labels that mean nothing: who gets them right has seen the double.
    targets = np.random.default_rng(11).integers(0, 2, 150)
    features = np.random.default_rng(12).random((150, sum(BLOCK_SIZES)))
    doubles = features + 0.02 * np.random.default_rng(13).normal(size=features.shape)
    examples = make_examples(np.concatenate([targets, targets]))
    examples = replace(examples, features=np.concatenate([features, doubles]).astype(np.float16))
    if backbone == "fine-tuned":
        groups = dict(zip(examples.digests, examples.digests[:150] * 2, strict=True))
        examples = replace(examples, split=NetworkSplit(seen=frozenset(), held_out=groups))
    elif backbone != "pretrained":
        examples = replace(examples, split=split_of(examples.digests[:150]))
    learned = learn_from(examples, 2)
    assert learned.uncalibrated.accuracy == pytest.approx(0.5, abs=0.12)
    assert learned.calibrated.log_loss > 0.65


def test_where_few_may_judge_a_version_is_as_sure_as_where_all_may() -> None:
    targets = np.arange(150) % 3
    examples = make_examples(targets)
    split = NetworkSplit(seen=frozenset(examples.digests[30:]), held_out={each: each for each in examples.digests[:30]})
    few = replace(examples, split=split)
    all_judge, few_judge = learn_from(examples, 3), learn_from(few, 3)
    rows = [all_judge.out_of_fold.digests.index(digest) for digest in few_judge.out_of_fold.digests]
    sure = np.log(all_judge.out_of_fold.probabilities[rows].max(axis=1)).mean()
    assert np.log(few_judge.out_of_fold.probabilities.max(axis=1)).mean() == pytest.approx(sure, rel=0.3)


def test_images_a_backbone_was_trained_on_never_judge() -> None:
    targets = np.arange(80) % 2
    # As after fine-tuning: one whole fold was held out.
    examples = make_examples(targets)
    held_out = {digest for digest in examples.digests if fold_of(digest) == 0}
    examples = replace(examples, split=split_of(held_out))
    learned = learn_from(examples, 2)
    assert_sound(learned, examples)
    assert set(learned.out_of_fold.digests) == held_out
    assert learned.calibrated.accuracy > 0.8


def test_nobody_to_judge_is_an_empty_report() -> None:
    examples = replace(make_examples(np.arange(20) % 2), split=split_of([]))
    learned = learn_from(examples, 2, make_features(np.arange(30) % 2, 2))
    assert_sound(learned, examples)
    assert learned.calibrated.n == 0


@pytest.mark.parametrize("with_pool", [False, True])
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([0, 1], id="one label each"),
        pytest.param([0, 0, 0, 1], id="three and one"),
        pytest.param([0] * 60 + [1], id="extreme imbalance"),
        pytest.param(list(range(40)), id="forty classes with one label each"),
        pytest.param([3, 7, 3, 7, 3, 7], id="most classes without a label"),
    ],
)
def test_hard_cases_of_one_class_per_image(targets: list[int], with_pool: bool) -> None:
    examples = make_examples(np.array(targets))
    pool = make_features(np.resize(targets, 50), 2) if with_pool else None
    assert_sound(learn_from(examples, 40, pool), examples)


@pytest.mark.parametrize("with_pool", [False, True])
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([[1, 0, 0]], id="one image"),
        pytest.param([[0, 0, 0]] * 5, id="no class ever"),
        pytest.param([[1, 1, 1]] * 5, id="all classes always"),
        pytest.param([[1, 0, 1]] * 9 + [[0, 0, 1]] * 9, id="one mixed class"),
        pytest.param([[1, 0, 0]] + [[0, 1, 0]] * 50, id="one positive"),
    ],
)
def test_hard_cases_of_several_classes_per_image(targets: list[list[int]], with_pool: bool) -> None:
    examples = make_examples(np.array(targets, bool))
    pool = make_features(np.resize(np.array(targets, bool), (50, 3)), 2) if with_pool else None
    assert_sound(learn_from(examples, 3, pool), examples)


@pytest.mark.parametrize(("multiple", "with_pool"), [(False, True), (True, False)])
def test_a_thousand_classes(multiple: bool, with_pool: bool) -> None:
    """Most with one label: the few steps that logistic regression has time for must lead somewhere."""
    indices, every_class = np.arange(1200) % 1000, np.arange(1000)
    targets = np.eye(1000, dtype=bool)[indices] if multiple else indices
    examples = replace(make_examples(targets), features=make_features(indices, 1, noise=0.4))
    learned = learn_from(examples, 1000, make_features(every_class, 2, noise=0.4) if with_pool else None)
    assert_sound(learned, examples)
    probabilities = learned.predictor.predict_proba(make_features(every_class, 3, noise=0.4))
    assert (probabilities.argmax(axis=1) == every_class).mean() > 0.75
    assert probabilities[every_class, every_class].mean() > 0.2


def test_constant_features_and_duplicates() -> None:
    examples = make_examples(np.arange(30) % 3)
    constant = replace(examples, features=np.ones_like(examples.features))
    assert_sound(learn_from(constant, 3, np.ones((20, sum(BLOCK_SIZES)), np.float16)), constant)
    twice = replace(examples, features=np.repeat(examples.features[:15], 2, axis=0), digests=examples.digests[:15] * 2)
    assert_sound(learn_from(twice, 3), twice)
    zero = replace(examples, features=np.zeros_like(examples.features))
    assert_sound(learn_from(zero, 3), zero)


def test_more_labels_than_needed_are_thinned_where_there_are_most() -> None:
    targets = np.repeat([0, 1, 2], [300, 40, 5])
    examples = make_examples(targets)
    thinned = examples.thinned(100)
    assert np.bincount(thinned.targets).tolist() == [55, 40, 5]
    more = make_examples(np.append(targets, 0)).thinned(100)
    assert len(set(more.digests) - set(thinned.digests)) <= 1
    rows = [examples.digests.index(digest) for digest in thinned.digests]
    np.testing.assert_array_equal(thinned.features, examples.features[rows])
    np.testing.assert_array_equal(thinned.targets, targets[rows])
    assert examples.thinned(345) is examples


def test_images_with_a_rare_class_are_kept_when_labels_are_thinned() -> None:
    memberships = np.zeros((200, 3), bool)
    memberships[:150, 0] = True
    memberships[:6, 2] = True
    thinned = make_examples(memberships).thinned(60)
    assert thinned.targets.sum(axis=0).tolist() == [33, 0, 6]
    assert (~thinned.targets.any(axis=1)).sum() == 27


def test_same_arguments_give_the_same_result() -> None:
    examples, pool = make_examples(np.arange(60) % 3), make_features(np.arange(3000) % 3, 2)
    first, second = learn_from(examples, 3, pool), learn_from(examples, 3, pool)
    np.testing.assert_array_equal(first.predictor.head.weight, second.predictor.head.weight)
    np.testing.assert_array_equal(first.out_of_fold.probabilities, second.out_of_fold.probabilities)


def checkpoint_digest(folder: Path, seed: int) -> str:
    """Learn with more images than are looked at, so that chance has its part, and save."""
    examples, pool = make_examples(np.arange(60) % 3), make_features(np.arange(3000) % 3, 2)
    learned = learn(examples, names(3), multiple=False, block_sizes=BLOCK_SIZES, pool=pool, seed=seed)
    folder.mkdir()
    return save_checkpoint(folder, learned, backbone_digest="f00d", snapshot="5a")


def test_the_same_seed_gives_the_same_checkpoint_in_every_process(tmp_path: Path) -> None:
    first, other = checkpoint_digest(tmp_path / "first", 1), checkpoint_digest(tmp_path / "other", 2)
    assert first != other
    code = f"""
from pathlib import Path
from tests.unit.model.test_learning import checkpoint_digest
print(checkpoint_digest(Path({str(tmp_path / "again")!r}), 1))
"""
    root = Path(__file__).parents[3]
    again = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.split()[-1] == first


def test_too_few_labels_say_so() -> None:
    with pytest.raises(TooFewLabels, match="no labelled image"):
        learn_from(make_examples(np.zeros(0, int)), 3)
    with pytest.raises(TooFewLabels, match="'class 1'"):
        learn_from(make_examples(np.ones(5, int)), 3)


def test_arrays_that_do_not_fit_are_refused() -> None:
    examples = make_examples(np.arange(6) % 3)
    with pytest.raises(ValueError, match="same images"):
        replace(examples, digests=examples.digests[:3])
    with pytest.raises(ValueError, match="not finite"):
        replace(examples, features=np.full_like(examples.features, np.nan))
    with pytest.raises(ValueError, match="indices of 2 classes"):
        learn_from(examples, 2)
    with pytest.raises(ValueError, match="blocks"):
        learn(examples, names(3), multiple=False, block_sizes=(5, 5))
    with pytest.raises(ValueError, match="several per image"):
        learn(make_examples(np.ones((4, 2), bool)), names(3), multiple=True, block_sizes=BLOCK_SIZES)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("multiple", [False, True])
def test_a_few_nearly_equal_images(spread: float, multiple: bool) -> None:
    random = np.random.default_rng(0)
    targets = np.arange(6) % 3
    alike = (1.0 + spread * random.normal(size=(6, sum(BLOCK_SIZES)))).astype(np.float16)
    examples = replace(make_examples(np.eye(3, dtype=bool)[targets] if multiple else targets), features=alike)
    learned = learn_from(examples, 3)
    assert np.isfinite(learned.predictor.predict_proba(alike)).all()
    assert np.isfinite(learned.calibrated.log_loss)


class TestOpinion:
    """A classifier that knows the four classes by heart beside a head that learns them from a few labels."""

    N_CLASSES = 4

    def opinion(self, shift: int = 0) -> Opinion:
        """What knows where the clusters lie, and with a ``shift`` means another class by each name."""
        centres = np.maximum(np.random.default_rng(0).normal(size=(1000, sum(BLOCK_SIZES))), 0)
        columns = np.roll(centres[: self.N_CLASSES, -BLOCK_SIZES[-1] :], shift, axis=0).T.astype(np.float32)
        bias = -0.5 * (columns**2).sum(axis=0)
        return Opinion(
            layers=(LinearMap(weight=columns, bias=bias),), groups=tuple((index,) for index in range(self.N_CLASSES))
        )

    def learn(self, n_labels: int, opinion: Opinion | None) -> tuple[Learned, float]:
        """Learn, and return the log loss on images never seen, too."""
        examples = make_examples(np.arange(n_labels) % self.N_CLASSES)
        learned = learn(examples, names(self.N_CLASSES), multiple=False, block_sizes=BLOCK_SIZES, opinion=opinion)
        assert_sound(learned, examples)
        targets = np.arange(800) % self.N_CLASSES
        fresh = evaluate(learned.predictor.predict_proba(make_features(targets, 3)), targets, multiple=False)
        return learned, fresh.log_loss

    def test_it_helps_where_labels_are_few(self) -> None:
        alone, helped = self.learn(16, None), self.learn(16, self.opinion())
        assert helped[1] < 0.8 * alone[1]
        assert helped[0].predictor.opinion_share > 0.3
        assert helped[0].calibrated.log_loss < alone[0].calibrated.log_loss

    def test_labels_unmask_one_that_means_something_else(self) -> None:
        alone, misled = self.learn(40, None), self.learn(40, self.opinion(shift=1))
        assert misled[0].predictor.opinion_share < 0.1
        assert misled[1] == pytest.approx(alone[1], rel=0.15)

    def test_the_report_is_of_images_whose_labels_did_not_decide_its_share(self) -> None:
        learned, fresh_log_loss = self.learn(200, self.opinion())
        assert learned.calibrated.log_loss == pytest.approx(fresh_log_loss, abs=0.15)

    def test_one_of_other_classes_is_refused(self) -> None:
        examples = make_examples(np.arange(20) % 2)
        with pytest.raises(ValueError, match="an opinion of 4 classes does not fit 2"):
            learn(examples, names(2), multiple=False, block_sizes=BLOCK_SIZES, opinion=self.opinion())
        several = make_examples(np.eye(4, dtype=bool)[np.arange(20) % 4])
        with pytest.raises(ValueError, match="one per image"):
            learn(several, names(4), multiple=True, block_sizes=BLOCK_SIZES, opinion=self.opinion())
