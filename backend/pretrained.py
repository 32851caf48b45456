"""What suggests labels before the first of them is given: the classes that a backbone was pretrained to tell apart.

Only by name: a class is known where it, or one of its synonyms, is called like a category of the backbone's own
classifier, mostly one of ImageNet's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from backend.domain import PATH_SEPARATOR, LabelSchema, ModelVersion, Project, untrained_name
from backend.ports import Stores
from model.opinion import Opinion

if TYPE_CHECKING:
    from model.backbones import Backbone

MIN_MATCHED_CLASSES = 2
"""A single known class would be all that is ever suggested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedVersion:
    """The version of a project before its first one.

    ``categories`` are those of the backbone's classifier that mean each of ``class_names``, in the same order. The
    name tells the backbone and the categories too: suggestions for other classes are another version's.
    """

    name: str
    class_names: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    backbone_digest: str


Version = ModelVersion | PretrainedVersion
"""What suggests labels."""


def version_in_use(stores: Stores, project: Project) -> Version | None:
    """Return what suggests labels for a project: its active version; before the first what is pretrained, if any."""
    return stores.versions.active(project.id) or pretrained_version(stores, project)


def expected_name(stores: Stores, project: Project) -> str:
    """Return the version that Label Studio should expect suggestions of; it insists on one."""
    version = version_in_use(stores, project)
    return version.name if version else untrained_name(project.id)


def pretrained_version(stores: Stores, project: Project) -> PretrainedVersion | None:
    """Return what suggests labels for a project without a version of its own, if at least two classes are known.

    Classes need not all be known: an image of another one is mostly like no known one either, and gets no suggestion
    (``model.inference``). There is none where an image may have several classes: a softmax tells which category an
    image shows most of, not which ones besides, and no threshold on it would be more than a guess.
    """
    schema, digest = project.schema, project.backbone_digest
    if schema is None or schema.multiple or digest is None:
        return None
    matched = match_categories(schema, stores.backbones.categories(digest))
    if len(matched) < MIN_MATCHED_CLASSES:
        return None
    content = json.dumps([digest, sorted(matched.items())]).encode()
    return PretrainedVersion(
        name=f"p{project.id}-v0-pretrained-{hashlib.sha256(content).hexdigest()[:8]}",
        class_names=tuple(matched),
        categories=tuple(matched.values()),
        backbone_digest=digest,
    )


def names_of_all_classes(schema: LabelSchema, categories: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
    """Return the categories that mean each class, where each image has one and all classes are known by name.

    What is said of some of the classes only cannot be held against what a head says of all.
    """
    matched = match_categories(schema, categories)
    return None if schema.multiple or len(matched) < len(schema.class_names) else tuple(matched.values())


def opinion_of(backbone: Backbone, schema: LabelSchema) -> Opinion | None:
    """Return what a backbone was pretrained to say of the classes, where it knows all of them by name."""
    layers = backbone.classifier.as_arrays() if backbone.classifier else None
    names = names_of_all_classes(schema, layers.categories) if layers else None
    return layers.opinion(names) if layers and names else None


def is_version_name(project_id: int, name: str) -> bool:
    """Tell whether a version that Label Studio names is one of this project's own, learned or not."""
    learned = rf"p{project_id}-v\d+-[0-9a-f]{{8}}|{untrained_name(project_id)}"
    return re.fullmatch(learned, name) is not None or is_pretrained_name(project_id, name)


def is_pretrained_name(project_id: int, name: str) -> bool:
    """Tell whether a version that Label Studio names is one of this project's before its first one."""
    return re.fullmatch(rf"p{project_id}-v0-pretrained-[0-9a-f]{{8}}", name) is not None


@lru_cache(maxsize=64)
def match_categories(schema: LabelSchema, categories: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return the categories that mean a class, for each class that any does.

    A category means a class when one of its names (WordNet gives several, separated by commas) is the class's own or
    one of its synonyms. Upper and lower case, underscores, hyphens and an ``s`` at the end make no difference; of a
    nested class the last step counts. A category that would mean two classes means neither.
    """
    classes: dict[str, set[str]] = defaultdict(set)
    for class_name, names in _names(schema).items():
        for name in names:
            classes[name].add(class_name)
    meant: dict[str, list[str]] = {class_name: [] for class_name in schema.class_names}
    for category in dict.fromkeys(categories):
        found = set().union(*(classes.get(_plain(name), set()) for name in (category, *category.split(","))))
        if len(found) == 1:
            meant[found.pop()].append(category)
    return {class_name: tuple(matched) for class_name, matched in meant.items() if matched}


def _names(schema: LabelSchema) -> dict[str, Collection[str]]:
    synonyms = schema.synonyms or ((),) * len(schema.class_names)
    steps = [name.split(PATH_SEPARATOR)[-1] if schema.nested else name for name in schema.class_names]
    return {
        class_name: {_plain(name) for name in (step, *others)} - {""}
        for class_name, step, others in zip(schema.class_names, steps, synonyms, strict=True)
    }


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip().removesuffix("s")
