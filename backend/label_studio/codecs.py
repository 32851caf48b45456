"""Label configs and regions: control tag and regions in, domain nouns out, and back.

The only module that knows what a label config looks like and how one label is written in a region. Everything here
follows what the editor of Label Studio 1.23.2 does, as recorded and as read in its code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

from backend.domain import PATH_SEPARATOR, Annotation, LabelConfig, LabelSchema, Suggestion, Task
from backend.errors import UnsupportedLabelConfig

if TYPE_CHECKING:
    from backend.label_studio.payloads import AnnotationPayload, RegionPayload, TaskPayload

MAX_CONFIG_CHARS = 2**20
MAX_CLASSES = 2_000
MAX_LABEL_CHARS = 1_000
MAX_PATH_LENGTH = 32
MAX_URL_CHARS = 2**14
MAX_DATA_URI_CHARS = 2**23
UNDEFINED_KEY = "$undefined$"
"""Where Label Studio keeps the value of a task that was imported as a bare URL."""

GEOMETRY_KEYS = frozenset({"x", "points", "vertices", "rle", "sequence"})
"""Keys of a region's value that make it a part of the image."""

SUPPORTED = 'Tandem learns one <Choices> control about the whole of an <Image value="$key">'


# --- label config --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def read_label_config(xml: str) -> LabelConfig:
    """Return the schema of the first Choices control that classifies a whole image, or the problem that leaves none.

    Never raises: label configs are input. Aliases are the class names where there are any, because they are what
    annotations hold. Nested choices need ``allowNested="true"``: without it the editor takes only choices of the top
    level, so only these are classes. With it a class is a path: for one class per image every node, as a click on a
    parent is an answer too, for several the leaves only, as the editor ticks a parent just when all below it is ticked.
    """
    if len(xml) > MAX_CONFIG_CHARS:
        return _unsupported(f"the label config has {len(xml)} characters, more than {MAX_CONFIG_CHARS}")
    if not xml.strip():
        return _unsupported("the label config is empty")
    try:
        root = fromstring(xml)
    except (ParseError, ValueError) as error:  # defusedxml's refusals are ValueErrors
        return _unsupported(f"the label config is not readable XML ({type(error).__name__}: {str(error)[:200]})")
    named = {name: element for element in root.iter() if (name := element.get("name"))}
    schema: LabelSchema | None = None
    ignored: list[str] = []
    for control in (element for element in named.values() if element.get("toName")):
        try:
            found = _read_control(control, named)
        except UnsupportedLabelConfig as reason:
            ignored.append(f"<{control.tag} name={control.get('name')!r}> {reason}")
            continue
        if schema is None:
            schema = found
            if not found.nested and any(map(_choices_below, _choices_below(control))):
                ignored.append('choices inside choices cannot be picked without allowNested="true"')
        else:
            ignored.append(f"<Choices name={found.control_name!r}> comes after the one in use")
    if schema is None:
        return _unsupported("; ".join(ignored[:20]) or "the label config has no control tag")
    return LabelConfig(schema=schema, note=f"ignored: {'; '.join(ignored[:20])}" if ignored else None)


def _unsupported(problem: str) -> LabelConfig:
    return LabelConfig(problem=f"{problem}. {SUPPORTED}")


def _read_control(control: Element, named: Mapping[str, Element]) -> LabelSchema:
    """Return the schema of a control tag.

    Raises:
        UnsupportedLabelConfig: the reason why it is not one to learn, as the end of a sentence.
    """
    if control.tag != "Choices":
        raise UnsupportedLabelConfig("is not a <Choices>")
    if _is_true(control, "perRegion") or _is_true(control, "perItem"):
        raise UnsupportedLabelConfig("is asked for each region or item, not for the whole image")
    if control.get("value") or control.get("apiUrl"):
        raise UnsupportedLabelConfig("takes its choices from each task, not from the label config")
    object_name = control.get("toName", "")
    image = named.get(object_name)
    if image is None or image.tag != "Image":
        raise UnsupportedLabelConfig(f"is about {object_name!r}, which is not an <Image>")
    key = re.fullmatch(r"\$([^${}]+)", image.get("value", ""))
    if key is None:
        raise UnsupportedLabelConfig(f'is about <Image name={object_name!r}>, which has no value="$key" of its own')
    multiple = control.get("choice") == "multiple"
    nested = _is_true(control, "allowNested")
    synonyms = _read_classes(control, multiple=multiple, nested=nested)
    return LabelSchema(
        control_name=control.get("name", ""),
        object_name=object_name,
        data_key=key[1],
        class_names=tuple(synonyms),
        multiple=multiple,
        nested=nested,
        synonyms=tuple(synonyms.values()) if any(synonyms.values()) else (),
    )


def _is_true(element: Element, attribute: str) -> bool:
    return element.get(attribute, "").lower() == "true"


def _read_classes(control: Element, *, multiple: bool, nested: bool) -> dict[str, tuple[str, ...]]:
    """Return the synonyms of each class, by its name."""
    synonyms: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    pending: list[tuple[tuple[str, ...], Element]] = [((), choice) for choice in reversed(_choices_below(control))]
    while pending:
        parents, choice = pending.pop()
        path = (*parents, _read_label(choice, nested=nested))
        name = PATH_SEPARATOR.join(path)
        if name in seen:
            raise UnsupportedLabelConfig(f"has the choice {name!r} twice")
        seen.add(name)
        children = _choices_below(choice) if nested else []
        # An only child is ticked whenever its parent is, and the other way round: together they are one class.
        if not children or (len(children) > 1 and not multiple):
            synonyms[name] = _read_synonyms(choice)
        if len(seen) > MAX_CLASSES or len(path) > MAX_PATH_LENGTH:
            raise UnsupportedLabelConfig(f"has more than {MAX_CLASSES} choices, or {MAX_PATH_LENGTH} levels of them")
        pending.extend((path, child) for child in reversed(children))
    if not synonyms:
        raise UnsupportedLabelConfig("has no <Choice>")
    return synonyms


def _choices_below(parent: Element) -> list[Element]:
    """Return the choices of the next level: other tags, such as View and Header, may lie between, but no control."""
    choices: list[Element] = []
    pending = list(reversed(parent))
    while pending:
        element = pending.pop()
        if element.tag == "Choice":
            choices.append(element)
        elif not element.get("toName"):
            pending.extend(reversed(element))
    return choices


def _read_label(choice: Element, *, nested: bool) -> str:
    label = choice.get("alias") or choice.get("value") or ""
    if not label:
        raise UnsupportedLabelConfig("has a <Choice> with neither value nor alias")
    if len(label) > MAX_LABEL_CHARS:
        raise UnsupportedLabelConfig(f"has a choice of {len(label)} characters, more than {MAX_LABEL_CHARS}")
    if not choice.get("alias") and re.match(r"\$\w", label):
        raise UnsupportedLabelConfig(f"takes the choice {label!r} from each task")
    if nested and PATH_SEPARATOR in label:
        raise UnsupportedLabelConfig(f"has {PATH_SEPARATOR!r} in the choice {label!r}, which joins nested choices")
    return label


def _read_synonyms(choice: Element) -> tuple[str, ...]:
    """Return what a choice is called besides: what is shown where an alias is stored, and its ``predicted_values``.

    The latter is what Label Studio's own examples of backends look for: names that a pretrained model has for a class,
    separated by commas.
    """
    shown = choice.get("value", "") if choice.get("alias") else ""
    names = [shown, *choice.get("predicted_values", "").split(",")]
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


# --- Label Studio → domain ---------------------------------------------------------------------------------


def decode_task(payload: TaskPayload, schema: LabelSchema) -> Task:
    """Return the task with the URL of the image that the schema is about; ``None`` where there is no usable one."""
    return Task(id=payload.id, image_url=_find_image_url(payload.data, schema.data_key))


def _find_image_url(task_data: Mapping[str, object], key: str) -> str | None:
    value: object = task_data
    if key in task_data:
        value = task_data[key]
    else:
        for step in key.replace("[", ".").replace("]", "").split("."):
            if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                value = value.get(step) if isinstance(value, Mapping) else None
    if value is None:
        value = task_data.get(UNDEFINED_KEY)
    if not isinstance(value, str):
        return None
    url = value.strip()
    limit = MAX_DATA_URI_CHARS if url.startswith("data:") else MAX_URL_CHARS
    return url if url and len(url) <= limit and is_storable(url) else None


def is_storable(text: str) -> bool:
    """Tell whether every database takes a text: half surrogate pairs and NUL are refused by some."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def decode_annotation(payload: AnnotationPayload, schema: LabelSchema) -> Annotation:
    """Return the annotation with the label it gives the whole image; a skipped one gives none, whatever it holds.

    Labels that the label config does not have (any more) are kept, so that they count again when they come back.
    """
    class_names: tuple[str, ...] = ()
    if not payload.was_cancelled:
        names = (name for region in payload.result for name in _read_region(region, schema))
        class_names = tuple(dict.fromkeys(names))
    if schema.nested:
        class_names = _without_implied(class_names, schema)
    return Annotation(
        id=payload.id,
        task_id=payload.task,
        class_names=class_names,
        updated_at=payload.updated_at,
        ground_truth=payload.ground_truth,
        annotator_id=payload.completed_by,
    )


def _read_region(region: RegionPayload, schema: LabelSchema) -> list[str]:
    """Return the class names in a region; none when it belongs to another control or to a part of the image."""
    value = region.value
    if region.from_name != schema.control_name or region.type != "choices" or GEOMETRY_KEYS & value.keys():
        return []
    choices = value.get("choices")
    if not isinstance(choices, list):
        return []
    paths = [choice if isinstance(choice, list) else [choice] for choice in choices]
    return [
        PATH_SEPARATOR.join(path)
        for path in paths
        if 0 < len(path) <= MAX_PATH_LENGTH and all(isinstance(step, str) and is_storable(step) for step in path)
    ]


def _without_implied(class_names: tuple[str, ...], schema: LabelSchema) -> tuple[str, ...]:
    """Drop what the editor ticks by itself: with a parent all below it, and a parent once all below it is ticked."""
    known = set(schema.class_names)
    above = {name: _parents(name) for name in class_names}
    parents_of_some = {parent for parents in above.values() for parent in parents}
    kept = []
    for name in class_names:
        is_whole = name in parents_of_some and (schema.multiple or name not in known)
        is_part = not schema.multiple and any(parent in above and parent in known for parent in above[name])
        if not (is_whole or is_part):
            kept.append(name)
    return tuple(kept)


def _parents(name: str) -> list[str]:
    path = name.split(PATH_SEPARATOR)
    return [PATH_SEPARATOR.join(path[:length]) for length in range(1, len(path))]


# --- domain → Label Studio -----------------------------------------------------------------------------------


def encode_suggestion(suggestion: Suggestion, schema: LabelSchema) -> dict[str, Any]:
    """Return one entry of the results of ``/predict``.

    It is empty, which Label Studio takes as no prediction, when a class is not in the label config: Label Studio
    would store it unchecked and make an invalid annotation of it. No class at all is an answer where several may be
    chosen: an entry without region.
    """
    if any(name not in schema.class_names for name in suggestion.class_names):
        return {}
    score = float(suggestion.score)
    regions = []
    if suggestion.class_names:
        identity = f"{suggestion.version}/{suggestion.task_id}/{schema.control_name}"
        regions.append(
            {
                "id": hashlib.sha256(identity.encode()).hexdigest()[:10],
                "from_name": schema.control_name,
                "to_name": schema.object_name,
                "type": "choices",
                "value": {"choices": _encode_choices(suggestion.class_names, schema)},
                "score": score,
            }
        )
    return {"result": regions, "score": score, "model_version": suggestion.version}


def _encode_choices(class_names: Sequence[str], schema: LabelSchema) -> list[str] | list[list[str]]:
    if not schema.nested:
        return list(class_names)
    # The editor shows a parent as ticked only when all below it is.
    ticked = [
        name
        for name in schema.class_names
        if any(name == chosen or name.startswith(chosen + PATH_SEPARATOR) for chosen in class_names)
    ]
    return [name.split(PATH_SEPARATOR) for name in ticked]


def encode_predictions(suggestions: Sequence[Suggestion], schema: LabelSchema) -> list[dict[str, Any]]:
    """Return the body of an import of predictions; suggestions with a class the label config lacks are left out."""
    entries = ((suggestion.task_id, encode_suggestion(suggestion, schema)) for suggestion in suggestions)
    return [{"task": task_id, **entry} for task_id, entry in entries if entry]
