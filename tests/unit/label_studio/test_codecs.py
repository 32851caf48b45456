from __future__ import annotations

from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain import LabelSchema, Suggestion
from backend.label_studio.codecs import (
    MAX_CLASSES,
    MAX_CONFIG_CHARS,
    MAX_DATA_URI_CHARS,
    MAX_LABEL_CHARS,
    MAX_URL_CHARS,
    _choices_below,
    decode_annotation,
    decode_task,
    encode_predictions,
    encode_suggestion,
    read_label_config,
)
from backend.label_studio.payloads import AnnotationPayload, TaskPayload


def config_of(choices: str, *, control: str = "", image: str = 'value="$image"') -> str:
    return f'<View><Image name="img" {image}/><Choices name="c" toName="img" {control}>{choices}</Choices></View>'


def schema_of(choices: str = '<Choice value="cat"/><Choice value="dog"/>', *, control: str = "") -> LabelSchema:
    config = read_label_config(config_of(choices, control=control))
    assert config.schema is not None, config.problem
    return config.schema


def test_choices_of_a_control_inside_another_are_none_of_that() -> None:
    inner = '<Choices name="inner" toName="img"><Choice value="y"/></Choices>'
    outer = fromstring(f'<Choices name="outer" toName="img"><View><Choice value="x"/></View>{inner}</Choices>')
    assert [choice.get("value") for choice in _choices_below(outer)] == ["x"]


NESTED = (
    '<Choice value="animal"><Choice value="cat"/><Choice value="dog"/></Choice>'
    '<Choice value="thing"><Choice value="car"/></Choice><Choice value="none"/>'
)


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("<View>", "not readable XML"),
        ("no xml", "not readable XML"),
        ("\ud800", "not readable XML"),
        ("<View/>", "no control tag"),
        ("x" * (MAX_CONFIG_CHARS + 1), "characters"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><View>&e;</View>', "EntitiesForbidden"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><View>&e;</View>', "EntitiesForbidden"),
        (config_of(""), "has no <Choice>"),
        (config_of("<Choice/>"), "neither value nor alias"),
        (config_of('<Choice value="a"/><Choice value="a"/>'), "'a' twice"),
        (config_of('<Choice value="a"/><Choice value="b" alias="a"/>'), "'a' twice"),
        (config_of('<Choice value="$label"/>'), "'$label' from each task"),
        (config_of(f'<Choice value="{"a" * (MAX_LABEL_CHARS + 1)}"/>'), "characters"),
        (config_of("".join(f'<Choice value="{n}"/>' for n in range(MAX_CLASSES + 1))), "more than 2000 choices"),
        (config_of('<Choice value="a"/>', control='apiUrl="http://x"'), "from each task"),
        (config_of('<Choice value="a"/>', control='perItem="true"'), "each region or item"),
        (config_of('<Choice value="a &gt; b"/>', control='allowNested="true"'), "joins nested choices"),
        (config_of('<Choice value="a">' * 40 + "</Choice>" * 40, control='allowNested="true"'), "levels"),
        (config_of('<Choice value="a"/>', image='value="$urls[{{idx}}]"'), 'no value="$key"'),
        (config_of('<Choice value="a"/>', image='value="http://x/$image"'), 'no value="$key"'),
        (
            '<View><Text name="t" value="$t"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>',
            "is about 't', which is not an <Image>",
        ),
        ('<View><Choices name="c" toName="nowhere"><Choice value="a"/></Choices></View>', "is about 'nowhere'"),
    ],
)
def test_label_configs_with_a_problem(xml: str, problem: str) -> None:
    config = read_label_config(xml)
    assert config.schema is None
    assert config.problem is not None
    assert problem in config.problem
    assert config.problem.endswith('Tandem learns one <Choices> control about the whole of an <Image value="$key">')


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet='<>/="$ &;![]{}abImagevluChocsntTNx'))
def test_reading_a_label_config_never_raises(xml: str) -> None:
    assert (read_label_config(xml).schema is None) == (read_label_config(xml).problem is not None)


def test_the_first_control_that_can_be_learned_is_used() -> None:
    xml = (
        '<View><Image name="a" value="$a"/><Text name="t" value="$t"/>'
        '<Choices name="topic" toName="t"><Choice value="x"/></Choices>'
        '<Choices name="kind" toName="a"><View><Choice value="y"/></View><Header/><Choice value="z"/></Choices></View>'
    )
    config = read_label_config(xml)
    assert config.schema == LabelSchema(control_name="kind", object_name="a", data_key="a", class_names=("y", "z"))
    assert config.note == "ignored: <Choices name='topic'> is about 't', which is not an <Image>"


def test_choices_inside_choices_are_classes_only_with_allow_nested() -> None:
    flat = read_label_config(config_of(NESTED))
    assert flat.schema is not None
    assert flat.schema.class_names == ("animal", "thing", "none")
    assert flat.note is not None
    assert 'allowNested="true"' in flat.note
    # An only child and its parent are always ticked together.
    single = schema_of(NESTED, control='allowNested="true"')
    assert single.class_names == ("animal", "animal > cat", "animal > dog", "thing > car", "none")
    multiple = schema_of(NESTED, control='allowNested="true" choice="multiple"')
    assert multiple.class_names == ("animal > cat", "animal > dog", "thing > car", "none")


@pytest.mark.parametrize(
    ("choice", "synonyms"),
    [
        ('<Choice value="Dog" predicted_values="golden retriever,Labrador"/>', ("golden retriever", "Labrador")),
        ('<Choice value="Dog" predicted_values=" beagle , ,beagle,"/>', ("beagle",)),
        ('<Choice value="Dog" alias="d"/>', ("Dog",)),
        ('<Choice value="Dog" alias="d" predicted_values="beagle"/>', ("Dog", "beagle")),
    ],
)
def test_other_names_of_a_choice(choice: str, synonyms: tuple[str, ...]) -> None:
    assert schema_of(f'<Choice value="cat"/>{choice}').synonyms == ((), synonyms)


@pytest.mark.parametrize("empty", ["", 'predicted_values=""', 'predicted_values=" , "'])
def test_choices_without_another_name(empty: str) -> None:
    schema = schema_of(f'<Choice value="cat"/><Choice value="dog" {empty}/>')
    assert schema.synonyms == ()
    assert schema.class_names == ("cat", "dog")


def test_synonyms_of_nested_choices_are_those_of_the_last_one() -> None:
    choices = '<Choice value="animal" predicted_values="beast"><Choice value="cat" predicted_values="tabby"/></Choice>'
    schema = schema_of(f'{choices}<Choice value="none"/>', control='allowNested="true"')
    assert dict(zip(schema.class_names, schema.synonyms, strict=True)) == {"animal > cat": ("tabby",), "none": ()}


def annotate(schema: LabelSchema, choices: object, **other: object) -> tuple[str, ...]:
    region = {"from_name": "c", "to_name": "img", "type": "choices", "value": {"choices": choices}, **other}
    payload = AnnotationPayload.model_validate(
        {"id": 1, "task": 2, "updated_at": "2026-11-23T19:00:00Z", "result": [region]}
    )
    return decode_annotation(payload, schema).class_names


@pytest.mark.parametrize(
    ("choices", "class_names"),
    [
        (["cat"], ("cat",)),
        ([["cat"]], ("cat",)),
        (["cat", "cat"], ("cat",)),
        (["gone"], ("gone",)),
        ([], ()),
        ("cat", ()),
        (None, ()),
        ([None, 3, {"a": 1}, [], ["a", 1], "dog"], ("dog",)),
        (["half \ud800 pair", "nul \x00"], ()),
    ],
)
def test_what_a_region_may_hold(choices: object, class_names: tuple[str, ...]) -> None:
    assert annotate(schema_of(), choices) == class_names


@pytest.mark.parametrize(
    "other",
    [
        {"from_name": "other"},
        {"type": "taxonomy"},
        {"type": None},
        {"value": {"choices": ["cat"], "x": 1.0, "y": 2.0}},
        {"value": {"choices": ["cat"], "points": []}},
        {"value": ["cat"]},
        {"value": None},
    ],
)
def test_regions_of_something_else_are_ignored(other: dict[str, object]) -> None:
    assert annotate(schema_of(), ["cat"], **other) == ()


def test_what_the_editor_ticks_by_itself_is_not_part_of_the_label() -> None:
    single = schema_of(NESTED, control='allowNested="true"')
    assert annotate(single, [["animal", "dog"]]) == ("animal > dog",)
    assert annotate(single, [["animal"], ["animal", "cat"], ["animal", "dog"]]) == ("animal",)
    assert annotate(single, [["thing"], ["thing", "car"]]) == ("thing > car",)
    multiple = schema_of(NESTED, control='allowNested="true" choice="multiple"')
    assert annotate(multiple, [["animal"], ["animal", "cat"], ["animal", "dog"], ["none"]]) == (
        "animal > cat",
        "animal > dog",
        "none",
    )


def suggest(schema: LabelSchema, *class_names: str) -> dict[str, object]:
    return encode_suggestion(Suggestion(task_id=7, class_names=class_names, score=0.5, version="p1-v2-abc"), schema)


def test_a_suggestion() -> None:
    entry = suggest(schema_of(), "cat")
    assert entry == {
        "result": [
            {
                "id": "dad2f1316f",
                "from_name": "c",
                "to_name": "img",
                "type": "choices",
                "value": {"choices": ["cat"]},
                "score": 0.5,
            }
        ],
        "score": 0.5,
        "model_version": "p1-v2-abc",
    }
    assert suggest(schema_of(), "cat") == entry


def test_no_class_is_an_answer_and_a_class_the_config_lacks_is_none() -> None:
    schema = schema_of(control='choice="multiple"')
    assert suggest(schema) == {"result": [], "score": 0.5, "model_version": "p1-v2-abc"}
    assert suggest(schema, "cat", "gone") == {}
    suggestions = [
        Suggestion(task_id=task_id, class_names=(name,), score=0.5, version="v")
        for task_id, name in enumerate(("cat", "gone", "dog"), start=1)
    ]
    assert [entry["task"] for entry in encode_predictions(suggestions, schema)] == [1, 3]


def test_a_suggested_parent_ticks_all_below_it() -> None:
    schema = schema_of(NESTED, control='allowNested="true"')
    (region,) = suggest(schema, "animal")["result"]  # type: ignore[misc]
    assert region["value"] == {"choices": [["animal"], ["animal", "cat"], ["animal", "dog"]]}


@pytest.mark.parametrize(
    ("task_data", "key", "url"),
    [
        ({"image": " /a.png "}, "image", "/a.png"),
        ({"a": {"b": "/x"}}, "a.b", "/x"),
        ({"a.b": "/flat", "a": {"b": "/x"}}, "a.b", "/flat"),
        ({"urls": ["/0", "/1"]}, "urls[1]", "/1"),
        ({"urls": ["/0"]}, "urls[1]", None),
        ({"$undefined$": "/bare"}, "image", "/bare"),
        ({"image": ["/a"]}, "image", None),
        ({"image": 3}, "image", None),
        ({"image": None}, "image", None),
        ({"image": ""}, "image", None),
        ({"image": "/a\x00"}, "image", None),
        ({"image": "/\udcff"}, "image", None),
        ({}, "a.b.c", None),
        ({"image": "/" + "a" * MAX_URL_CHARS}, "image", None),
        ({"image": "data:" + "a" * MAX_URL_CHARS}, "image", "data:" + "a" * MAX_URL_CHARS),
        ({"image": "data:" + "a" * MAX_DATA_URI_CHARS}, "image", None),
    ],
)
def test_image_urls(task_data: dict[str, object], key: str, url: str | None) -> None:
    schema = LabelSchema(control_name="c", object_name="img", data_key=key, class_names=("cat",))
    task = decode_task(TaskPayload(id=1, data=task_data), schema)
    assert task.image_url == url


@pytest.mark.timeout(20)
def test_hostile_sizes_take_no_time() -> None:
    deep = '<Choice value="a">' * 20_000 + "</Choice>" * 20_000
    assert read_label_config(config_of(deep)).schema is not None
    assert read_label_config(config_of(deep, control='allowNested="true"')).problem is not None
    assert read_label_config("<View>" * 70_000 + "</View>" * 70_000).problem is not None
    single = schema_of(NESTED, control='allowNested="true"')
    assert len(annotate(single, [["x", str(number)] for number in range(20_000)])) == 20_000
    assert annotate(single, [["x"] * 100_000]) == ()
