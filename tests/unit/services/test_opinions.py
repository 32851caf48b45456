"""What a backbone was pretrained to say of the classes goes on to count once there are labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from backend.domain import LabelConfig
from backend.promotion import classifier_key, version_key
from model.checkpoint import load_out_of_fold, load_predictor, load_version_report
from model.inference import Predictor
from tests.factories import BASE_DIGEST, make_config
from tests.world import PROJECT, World, pets

CATEGORIES = ("bird", "cat", "dog")


@pytest.fixture
def known(world: World) -> World:
    """The embedder knows cats and dogs, and has stored by what."""
    world.embedder.categories = CATEGORIES
    with world.artifacts.scratch() as folder:
        world.embedder.layers().write(folder)
        world.artifacts.publish(classifier_key(BASE_DIGEST), folder)
    return world


def predictor_of(world: World) -> Predictor:
    return load_predictor(world.artifacts.fetch(version_key(PROJECT, world.active.name)))


def test_a_version_keeps_what_its_backbone_says_of_the_classes(known: World) -> None:
    known.learn(pets(12))
    predictor = predictor_of(known)
    assert predictor.opinion is not None
    pictures = known.features.read(BASE_DIGEST, [task.image_digest or "" for task in known.tasks.values()])[0]
    said = np.exp(predictor.opinion.log_probabilities(pictures))
    of_groups = known.embedder.classify(pictures, [["cat"], ["dog"]], backbone_digest=BASE_DIGEST)[:, :-1]
    np.testing.assert_allclose(said, of_groups / of_groups.sum(axis=1, keepdims=True), atol=0.01)


def test_its_share_is_in_the_report_and_suggestions_go_by_it(known: World) -> None:
    known.learn(pets(12))
    folder = known.artifacts.fetch(version_key(PROJECT, known.active.name))
    report, predictor = load_version_report(folder), predictor_of(known)
    assert report.opinion_share == predictor.opinion_share > 0.3
    alone = dataclasses.replace(predictor, opinion=None, opinion_share=0.0)
    digests = load_out_of_fold(folder).digests
    rows = known.features.read(BASE_DIGEST, digests)[0]
    assert np.abs(predictor.predict_proba(rows) - alone.predict_proba(rows)).max() > 0.001


@pytest.mark.parametrize("config", [make_config("cat", "dog", "hamster"), make_config("cat", "dog", multiple=True)])
def test_there_is_none_where_it_cannot_speak_of_all_classes_of_an_image(known: World, config: LabelConfig) -> None:
    known.configure(config)
    known.learn(pets(12))
    assert predictor_of(known).opinion is None


def test_without_a_stored_classifier_there_is_none(world: World) -> None:
    world.embedder.categories = CATEGORIES
    world.learn(pets(12))
    assert predictor_of(world).opinion is None


@pytest.mark.parametrize("content", [b"", b"no arrays"])
def test_a_stored_classifier_that_is_damaged_costs_its_opinion_alone(known: World, content: bytes) -> None:
    (known.artifacts.fetch(classifier_key(BASE_DIGEST)) / "layers.safetensors").write_bytes(content)
    known.learn(pets(12))
    assert predictor_of(known).opinion is None


def test_a_stored_classifier_without_these_categories_is_left_aside(known: World) -> None:
    (known.artifacts.fetch(classifier_key(BASE_DIGEST)) / "categories.json").write_text('["ant", "bee", "wasp"]')
    known.learn(pets(12))
    assert predictor_of(known).opinion is None
