"""What is remembered, and for how long."""

from __future__ import annotations

import pytest

from backend import remembered
from backend.pretrained import PretrainedVersion
from backend.remembered import RememberedSuggestions
from model.inference import Suggested
from tests.factories import make_config

SUGGESTED = Suggested(class_names=("cat",), score=0.9)


def make_version(number: int) -> PretrainedVersion:
    return PretrainedVersion(name=f"v{number}", class_names=("cat", "dog"), categories=(), backbone_digest="d")


def test_versions_and_classes_are_told_apart() -> None:
    suggestions = RememberedSuggestions()
    schema, other = make_config("cat", "dog").schema, make_config("cat", "bird").schema
    assert schema is not None
    assert other is not None
    suggestions.of(make_version(1), schema)["image"] = SUGGESTED
    assert suggestions.of(make_version(1), schema) == {"image": SUGGESTED}
    assert suggestions.of(make_version(2), schema) == suggestions.of(make_version(1), other) == {}


def test_the_version_asked_for_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "N_VERSIONS", 2)
    suggestions, schema = RememberedSuggestions(), make_config("cat", "dog").schema
    assert schema is not None
    for number in (1, 2, 1, 3):
        suggestions.of(make_version(number), schema)[f"image {number}"] = SUGGESTED
    assert list(suggestions.of(make_version(1), schema)) == ["image 1"]
    assert suggestions.of(make_version(2), schema) == {}


def test_no_more_images_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MAX_IMAGES", 100)
    suggestions, schema = RememberedSuggestions(), make_config("cat", "dog").schema
    assert schema is not None
    for number in range(1000):
        kept = suggestions.of(make_version(1), schema)
        kept[str(number)] = SUGGESTED
        assert len(kept) <= 101
