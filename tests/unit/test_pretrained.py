"""Which classes a pretrained network knows by their names, and what that makes of a project."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.domain import LabelConfig, Project, untrained_name
from backend.pretrained import (
    expected_name,
    is_pretrained_name,
    is_version_name,
    match_categories,
    pretrained_version,
    version_in_use,
)
from tests.factories import BASE_DIGEST, make_identity, make_schema
from tests.world import World, pets

CATEGORIES = ("tabby", "tiger cat", "ant", "bee", "Granny Smith", "tench, Tinca tinca", "cardigan", "Cardigan", "bas-s")


def matched(*class_names: str, synonyms: tuple[tuple[str, ...], ...] = (), nested: bool = False) -> dict[str, object]:
    schema = replace(make_schema(*class_names), synonyms=synonyms, nested=nested)
    return dict(match_categories(schema, CATEGORIES))


class TestNames:
    @pytest.mark.parametrize("name", ["ant", "Ant", "ANTS", " ant ", "ants"])
    def test_case_blanks_and_a_plural_make_no_difference(self, name: str) -> None:
        assert matched(name, "wasp") == {name: ("ant",)}

    @pytest.mark.parametrize("name", ["granny_smith", "Granny-Smith", "GRANNY  SMITH", "granny smiths"])
    def test_words_are_held_together_by_anything(self, name: str) -> None:
        assert matched(name) == {name: ("Granny Smith",)}

    @pytest.mark.parametrize("name", ["tench", "tinca tinca", "Tench, Tinca tinca"])
    def test_each_of_several_names_of_a_category_counts(self, name: str) -> None:
        assert matched(name) == {name: ("tench, Tinca tinca",)}

    def test_a_part_of_a_name_is_not_the_name(self) -> None:
        assert matched("cat", "smith", "antelope", "a", "be") == {}

    def test_categories_of_the_same_name_count_together(self) -> None:
        assert matched("cardigan") == {"cardigan": ("cardigan", "Cardigan")}

    def test_synonyms_count_as_well_and_each_category_once(self) -> None:
        assert matched("cat", "ant", "dog", synonyms=(("tabby", "Tiger_Cat", "TABBY", "lynx"), ("ant",), ())) == {
            "cat": ("tabby", "tiger cat"),
            "ant": ("ant",),
        }

    def test_a_category_that_would_mean_two_classes_means_neither(self) -> None:
        synonyms = (("ant", "bee"), (), ())
        assert matched("insect", "ant", "tench", synonyms=synonyms) == {
            "insect": ("bee",),
            "tench": ("tench, Tinca tinca",),
        }
        assert matched("ant", "Ants") == {}

    def test_of_a_nested_class_the_last_step_counts(self) -> None:
        assert matched("ant", "ant > tabby", nested=True) == {"ant": ("ant",), "ant > tabby": ("tabby",)}
        assert matched("ant > tabby") == {}

    @pytest.mark.parametrize("name", ["", "s", "_", "-- --", ",", ".*", "(ant", "ant|bee", "\n", "🐜", "ant\x00"])
    def test_odd_names_match_nothing(self, name: str) -> None:
        assert matched(name, "bee", synonyms=((name,), ())) == {"bee": ("bee",)}
        assert match_categories(make_schema("ant", "bee"), (name, ", ,", "bee")) == {"bee": ("bee",)}


class TestVersion:
    @pytest.fixture
    def project(self) -> Project:
        config = LabelConfig(schema=make_schema("ants", "bees", "other"))
        return Project(id=5, identity=make_identity(), label_config=config, backbone_digest=BASE_DIGEST)

    @pytest.fixture
    def known(self, world: World) -> World:
        with world.database.transaction() as stores:
            stores.backbones.save_categories(BASE_DIGEST, CATEGORIES)
        return world

    def test_is_what_knows_at_least_two_classes(self, known: World, project: Project) -> None:
        with known.database.snapshot() as stores:
            version = pretrained_version(stores, project)
            assert version is not None
            assert version_in_use(stores, project) == version
            assert expected_name(stores, project) == version.name
        assert (version.class_names, version.categories) == (("ants", "bees"), (("ant",), ("bee",)))
        assert version.backbone_digest == BASE_DIGEST

    @pytest.mark.parametrize(
        "change", ["one class", "several per image", "another backbone", "no backbone", "no config"]
    )
    def test_is_none_where_it_could_not_be_trusted(self, known: World, project: Project, change: str) -> None:
        changed = {
            "one class": replace(project, label_config=LabelConfig(schema=make_schema("ant", "wasp"))),
            "several per image": replace(
                project, label_config=LabelConfig(schema=make_schema("ant", "bee", multiple=True))
            ),
            "another backbone": replace(project, backbone_digest="c" * 64),
            "no backbone": replace(project, backbone_digest=None),
            "no config": replace(project, label_config=LabelConfig(problem="none")),
        }[change]
        with known.database.snapshot() as stores:
            assert version_in_use(stores, changed) is None
            assert expected_name(stores, changed) == untrained_name(5)

    def test_has_another_name_with_other_classes_or_another_backbone(self, known: World, project: Project) -> None:
        others = [
            replace(project, label_config=LabelConfig(schema=make_schema("ants", "bees", "tench"))),
            replace(project, backbone_digest="c" * 64),
            replace(project, id=6),
        ]
        with known.database.transaction() as stores:
            stores.backbones.save_categories("c" * 64, CATEGORIES)
            names = {expected_name(stores, each) for each in (project, *others)}
            unmatched = replace(project, label_config=LabelConfig(schema=make_schema("bees", "x", "ants")))
            assert expected_name(stores, unmatched) == expected_name(stores, project)
        assert len(names) == 4

    def test_gives_way_to_the_first_one_learned(self, known: World) -> None:
        known.embedder.categories = ("cat", "dog", "bird")
        known.see_tasks(pets(6))
        known.embed()
        with known.database.snapshot() as stores:
            assert is_pretrained_name(5, expected_name(stores, known.project))
        active = known.learn(pets(6))
        with known.database.snapshot() as stores:
            assert version_in_use(stores, known.project) == active


@pytest.mark.parametrize(
    ("name", "ours", "pretrained"),
    [
        ("p5-v0-pretrained-1a2b3c4d", True, True),
        ("p5-v3-1a2b3c4d", True, False),
        ("p5-v0-untrained", True, False),
        ("p55-v0-pretrained-1a2b3c4d", False, False),
        ("p5-v0-pretrained-1a2b3c4d-mine", False, False),
        ("p5-v1-pretrained-1a2b3c4d", False, False),
        ("my own model", False, False),
    ],
)
def test_names_tell_what_is_ours(name: str, ours: bool, pretrained: bool) -> None:
    assert (is_version_name(5, name), is_pretrained_name(5, name)) == (ours, pretrained)
