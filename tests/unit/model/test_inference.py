import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.head import Head
from model.inference import Predictor, Suggested, suggest_known
from model.logits import LinearMap, calibrated
from model.opinion import Opinion
from model.query.uncertainty import narrowness


def make_predictor(*, multiple: bool = False, thresholds: tuple[float, ...] | None = None) -> Predictor:
    random = np.random.default_rng(7)
    return Predictor(
        class_names=("ant", "bee", "wasp"),
        multiple=multiple,
        head=Head(
            block_sizes=(4, 6),
            centre=random.random(10).astype(np.float32),
            weight=random.normal(size=(10, 3)).astype(np.float32),
            bias=random.normal(size=3).astype(np.float32),
        ),
        temperature=0.8,
        thresholds=thresholds or ((0.5, 0.5, 0.5) if multiple else None),
    )


def make_features(n_images: int) -> np.ndarray:
    return np.random.default_rng(8).random((n_images, 10)).astype(np.float16)


def test_probabilities_of_one_class_per_image_sum_to_one() -> None:
    probabilities = make_predictor().predict_proba(make_features(2500))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-9)


def test_rows_are_scored_alone_as_in_a_crowd() -> None:
    predictor, features = make_predictor(), make_features(1500)
    together = predictor.predict_proba(features)
    np.testing.assert_allclose(predictor.predict_proba(features[1200:1201]), together[1200:1201], rtol=1e-5)


def test_logits_are_what_the_definition_says() -> None:
    predictor, features = make_predictor(), make_features(3)
    roots = np.sqrt(features.astype(np.float64)) - predictor.head.centre
    early, late = roots[:, :4], roots[:, 4:]
    early /= np.linalg.norm(early, axis=1, keepdims=True)
    late /= np.linalg.norm(late, axis=1, keepdims=True)
    expected = np.hstack([early, late]) @ predictor.head.weight + predictor.head.bias
    np.testing.assert_allclose(predictor.head.logits(features), expected, rtol=1e-4, atol=1e-5)


def test_suggestion_is_the_most_probable_class_with_its_probability() -> None:
    predictor, features = make_predictor(), make_features(20)
    probabilities = predictor.predict_proba(features)
    for suggested, row in zip(predictor.suggest(features), probabilities, strict=True):
        assert suggested.class_names == (predictor.class_names[row.argmax()],)
        assert suggested.score == pytest.approx(row.max(), rel=1e-5)


def test_classes_gone_from_the_label_config_are_not_suggested_and_the_rest_renormalised() -> None:
    predictor, features = make_predictor(), make_features(20)
    kept = predictor.predict_proba(features)[:, [0, 2]]
    kept /= kept.sum(axis=1, keepdims=True)
    for suggested, row in zip(predictor.suggest(features, allowed=("wasp", "ant", "new")), kept, strict=True):
        assert suggested.class_names == (("ant", "wasp")[row.argmax()],)
        assert suggested.score == pytest.approx(row.max(), rel=1e-4)


def test_nothing_is_suggested_where_no_class_is_left() -> None:
    assert make_predictor().suggest(make_features(2), allowed=("new",)) == [Suggested(class_names=(), score=0.0)] * 2


def test_several_classes_are_those_over_their_threshold_and_the_score_is_of_the_whole_set() -> None:
    predictor = make_predictor(multiple=True, thresholds=(0.5, 0.1, 0.9))
    features = make_features(30)
    suggested = predictor.suggest(features, allowed=("ant", "bee"))
    for each, (ant, bee, _) in zip(suggested, predictor.predict_proba(features), strict=True):
        expected = [name for name, taken in (("ant", ant >= 0.5), ("bee", bee >= 0.1)) if taken]
        assert each.class_names == tuple(expected)
        score = (ant if ant >= 0.5 else 1 - ant) * (bee if bee >= 0.1 else 1 - bee)
        assert each.score == pytest.approx(score, rel=1e-4)


def test_a_class_known_by_name_is_suggested_where_no_other_category_is_likelier() -> None:
    of_groups = np.array([[0.3, 0.2, 0.25], [0.2, 0.3, 0.31], [0.1, 0.0, 0.1], [0.0, 0.04, 0.01]], np.float32)
    suggested = suggest_known(of_groups, ("ant", "bee"))
    assert [each.class_names for each in suggested] == [("ant",), (), (), ("bee",)]
    assert [each.score for each in suggested] == pytest.approx([0.3, 0.3, 0.1, 0.04])
    assert suggest_known(of_groups[:0], ("ant", "bee")) == []


def test_no_row_gives_no_suggestion() -> None:
    assert make_predictor().suggest(make_features(0)) == []


def test_features_of_another_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 9\)"):
        make_predictor().predict_proba(make_features(2)[:, :9])


def test_parts_that_do_not_fit_are_refused() -> None:
    predictor = make_predictor()
    with pytest.raises(ValueError, match="class names"):
        Predictor(class_names=("ant", "bee"), multiple=False, head=predictor.head, temperature=1.0)
    with pytest.raises(ValueError, match="threshold"):
        Predictor(class_names=predictor.class_names, multiple=True, head=predictor.head, temperature=1.0)
    with pytest.raises(ValueError, match="temperature"):
        Predictor(class_names=predictor.class_names, multiple=False, head=predictor.head, temperature=0.0)
    with pytest.raises(ValueError, match="blocks"):
        Head(block_sizes=(4,), centre=np.zeros(4), weight=np.zeros((5, 2)), bias=np.zeros(2))


def test_extreme_logits_stay_probabilities() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, -1e4]], np.float32)
    for multiple in (False, True):
        probabilities = calibrated(logits, 0.05, multiple=multiple)
        assert ((probabilities >= 0) & (probabilities <= 1)).all()


@pytest.mark.parametrize("multiple", [False, True])
def test_scores_keep_their_order_however_sure_they_are(multiple: bool) -> None:
    # One feature, which the centring leaves as it is: the logits are in proportion to it.
    predictor = Predictor(
        class_names=("ant", "bee"),
        multiple=multiple,
        head=Head(
            block_sizes=(2,),
            centre=np.zeros(2, np.float32),
            weight=np.array([[1e4, 0], [0, 1e4]], np.float32),
            bias=np.zeros(2, np.float32),
        ),
        temperature=0.5,
        thresholds=(0.5, 0.5) if multiple else None,
    )
    angles = np.linspace(0.1, 0.7, 200)
    rows = (np.stack([np.cos(angles), np.sin(angles)], axis=1) ** 2).astype(np.float32)
    scores = [each.score for each in predictor.suggest(rows)]
    assert max(scores) < 1
    assert min(scores) > 1 - 1e-6
    # With one class the first logit is further and further ahead; with several the second is surer and surer.
    assert np.argsort(scores).tolist() == (list(range(200)) if multiple else list(range(200)[::-1]))
    narrow = narrowness(predictor.predict_proba(rows), multiple=multiple)
    np.testing.assert_array_equal(np.argsort(-narrow), np.argsort(scores))


def test_probabilities_that_labels_can_tell_apart_are_those_of_the_logits() -> None:
    logits = np.random.default_rng(0).uniform(-6, 6, (50, 3))
    weights = np.exp(logits / 2)
    np.testing.assert_allclose(calibrated(logits, 2, multiple=False), weights / weights.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(calibrated(logits, 2, multiple=True), weights / (1 + weights))


@settings(max_examples=50, deadline=None)
@given(first=st.floats(0.1, 1e4), ratio=st.floats(1.001, 1000), multiple=st.booleans())
def test_surer_logits_have_surer_probabilities(first: float, ratio: float, multiple: bool) -> None:
    pair = calibrated(np.array([[first, 0.0], [ratio * first, 0.0]]), 1.0, multiple=multiple)
    assert 0.5 <= pair[0, 0] < pair[1, 0] < 1


def test_web_process_can_score_without_what_fitting_needs() -> None:
    code = "import sys, model.checkpoint, model.inference; print({'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


class TestOpinion:
    """Beside the head's word that of a classifier which looks at the last two features."""

    def opinion(self) -> Opinion:
        weight = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32) * 4
        return Opinion(layers=(LinearMap(weight=weight, bias=np.zeros(3, np.float32)),), groups=((0,), (1,), (2,)))

    def test_its_share_says_how_much_it_counts(self) -> None:
        head, features, opinion = make_predictor(), make_features(9), self.opinion()
        alone, said = head.predict_proba(features), np.exp(opinion.log_probabilities(features).astype(np.float64))
        for share in (0.0, 0.25, 1.0):
            pooled = alone ** (1 - share) * said**share
            expected = pooled / pooled.sum(axis=1, keepdims=True)
            predictor = replace(head, opinion=opinion, opinion_share=share)
            np.testing.assert_allclose(predictor.predict_proba(features), expected, rtol=1e-4, atol=1e-6)

    def test_suggestions_go_by_both(self) -> None:
        predictor, features = replace(make_predictor(), opinion=self.opinion(), opinion_share=0.5), make_features(40)
        probabilities = predictor.predict_proba(features)
        best = [predictor.class_names[column] for column in probabilities.argmax(axis=1)]
        assert [suggested.class_names[0] for suggested in predictor.suggest(features)] == best
        of_two = predictor.suggest(features, ["bee", "wasp"])
        renormalised = probabilities[:, 1:].max(axis=1) / probabilities[:, 1:].sum(axis=1)
        np.testing.assert_allclose([each.score for each in of_two], renormalised, rtol=1e-6)

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="an opinion of 3 classes"):
            replace(make_predictor(multiple=True), opinion=self.opinion())
        with pytest.raises(ValueError, match="an opinion of 2 classes"):
            replace(make_predictor(), opinion=replace(self.opinion(), groups=((0,), (1,))))
        with pytest.raises(ValueError, match="share"):
            replace(make_predictor(), opinion=self.opinion(), opinion_share=1.5)
