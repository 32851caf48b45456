from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.domain import (
    UNKNOWN_STAMP,
    AnnotationsSeen,
    NoSuggestion,
    ProjectIdentity,
    ProjectSeen,
    Suggestion,
    Task,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.errors import InvalidRequest
from backend.label_studio.codecs import read_label_config
from backend.label_studio.payloads import (
    JobStatusRequest,
    PredictRequest,
    SetupRequest,
    encode_predict_response,
    encode_setup_response,
    encode_versions,
    parse_event,
    parse_identity,
    parse_training_request,
)

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="cat"/>'
    '<Choice value="dog"/></Choices></View>'
)


def project(**other: object) -> dict[str, object]:
    return {"id": 5, "created_at": "2026-11-23T18:59:51.236418Z", "title": "Pets", "label_config": CONFIG, **other}


def annotation(annotation_id: object = 1, label: str = "cat", **other: object) -> dict[str, object]:
    region = {"from_name": "c", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    return {
        "id": annotation_id,
        "task": 10,
        "result": [region],
        "was_cancelled": False,
        "updated_at": "2026-11-23T19:00:00Z",
        **other,
    }


def event(action: str = "ANNOTATION_CREATED", **other: object) -> dict[str, Any]:
    body = {"action": action, "annotation": annotation(), "task": {"id": 10, "data": {"image": "/a.png"}}}
    return {**body, "project": project(), **other}


# --- events --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff", b"[" * 100_000, [1], None])
def test_only_what_is_no_json_object_is_invalid(body: object) -> None:
    for parse in (
        parse_event,
        SetupRequest.parse,
        PredictRequest.parse,
        parse_training_request,
        JobStatusRequest.parse,
    ):
        with pytest.raises(InvalidRequest, match="send a JSON object"):
            parse(body)


@pytest.mark.parametrize(
    ("body", "action"),
    [
        ({}, ""),
        ({"action": None}, ""),
        ({"action": "ANNOTATION_CREATED"}, "ANNOTATION_CREATED"),
        ({"action": "x" * 500}, "x" * 100),
        (event(project=None), "ANNOTATION_CREATED"),
        (event(project=5), "ANNOTATION_CREATED"),
        (event(project={"id": 5}), "ANNOTATION_CREATED"),
        (event(project=project(id="abc")), "ANNOTATION_CREATED"),
        (event(project=project(created_at="yesterday")), "ANNOTATION_CREATED"),
        (event(project=project(created_at="0001-01-01T00:00:00+14:00")), "ANNOTATION_CREATED"),
    ],
)
def test_events_about_nobody_knows_which_project(body: object, action: str) -> None:
    assert parse_event(body) == UnclearEvent(action=action)


@pytest.mark.parametrize(
    "body",
    [
        event("SOMETHING_NEW"),
        event(annotation=None),
        event(annotation="x"),
        event(annotation=annotation(None)),
        event(annotation=annotation(updated_at=None)),
        event(annotation=annotation(task=None)),
        event(project=project(label_config=None)),
        event("TASKS_CREATED", task=None),
        event("TASKS_DELETED", task=[{"id": 0}, {"no": 1}]),
        event("ANNOTATIONS_DELETED", annotation=[]),
    ],
)
def test_events_that_say_too_little_still_name_the_project(body: dict[str, Any]) -> None:
    found = parse_event(body)
    assert isinstance(found, UnclearEvent)
    assert found.action == body["action"]
    assert found.project is not None
    assert found.project.identity == ProjectIdentity(label_studio_id=5, created_stamp=1795460391)


def test_one_malformed_annotation_does_not_lose_the_others() -> None:
    broken = [annotation("x"), 7, None, annotation(3, updated_at="never"), annotation(4, result="none")]
    found = parse_event(event("ANNOTATIONS_CREATED", annotation=[annotation(1), *broken, annotation(2, "dog")]))
    assert isinstance(found, AnnotationsSeen)
    assert [(each.id, each.class_names) for each in found.annotations] == [(1, ("cat",)), (4, ()), (2, ("dog",))]


def test_a_malformed_task_does_not_lose_the_annotation() -> None:
    found = parse_event(event(task={"id": "?"}))
    assert isinstance(found, AnnotationsSeen)
    assert found.tasks == ()
    assert [each.id for each in found.annotations] == [1]


def test_malformed_regions_do_not_lose_the_label() -> None:
    regions = [3, {}, {"from_name": 1}, {"type": "choices", "from_name": "c", "value": 3}, *annotation()["result"]]  # type: ignore[misc]
    found = parse_event(event(annotation=annotation(result=regions)))
    assert isinstance(found, AnnotationsSeen)
    assert found.annotations[0].class_names == ("cat",)


def test_malformed_details_of_a_project_are_left_out() -> None:
    found = parse_event(event("PROJECT_UPDATED", project=project(title=[], task_number=-1, model_version="\ud800")))
    assert isinstance(found, ProjectSeen)
    assert (found.project.title, found.project.task_count, found.project.model_version) == (None, None, None)


def test_related_objects_may_stand_in_place_of_their_ids() -> None:
    found = parse_event(event(annotation=annotation(task={"id": 10}, completed_by={"id": 4, "email": "a@b"})))
    assert isinstance(found, AnnotationsSeen)
    assert (found.annotations[0].task_id, found.annotations[0].annotator_id) == (10, 4)


def test_flags_may_be_null() -> None:
    found = parse_event(event(annotation=annotation(was_cancelled=None, ground_truth=None)))
    assert isinstance(found, AnnotationsSeen)
    assert found.annotations[0].class_names == ("cat",)
    assert not found.annotations[0].ground_truth


def test_moments_without_a_zone_are_utc() -> None:
    zoned, bare = (
        parse_event(event(annotation=annotation(updated_at=moment)))
        for moment in ("2026-11-23T20:00:00+01:00", "2026-11-23T19:00:00")
    )
    assert zoned == bare


def test_an_unsupported_label_config_leaves_the_project() -> None:
    for action in ("ANNOTATION_CREATED", "TASKS_CREATED"):
        found = parse_event(event(action, project=project(label_config="<View/>")))
        assert isinstance(found, ProjectSeen)
        assert found.project.label_config == read_label_config("<View/>")


def test_keys_may_be_singular_or_plural() -> None:
    body = event("TASKS_DELETED", tasks={"id": 3})
    assert parse_event(body) == TasksDeleted(project=parse_event(body).project, task_ids=(3,))  # type: ignore[arg-type]
    assert isinstance(parse_event(event("TASKS_CREATED")), TasksSeen)


def paths(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from paths(part, (*path, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_an_event_with_any_part_replaced_by_anything_is_still_an_event(data: st.DataObject) -> None:
    action = data.draw(st.sampled_from(["ANNOTATION_CREATED", "TASKS_CREATED", "TASKS_DELETED", "START_TRAINING"]))
    body = copy.deepcopy(event(action))
    path = data.draw(st.sampled_from([each for each in paths(body) if each]))
    part: Any = body
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = data.draw(json_values)
    parse_event(body)
    parse_event(json.dumps(body).encode())


# --- identity, setup -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "identity"),
    [
        ("5.1795460391", (5, 1795460391)),
        ("5", (5, UNKNOWN_STAMP)),
        (5, (5, UNKNOWN_STAMP)),
        (project(), (5, 1795460391)),
        ({"id": 5}, (5, UNKNOWN_STAMP)),
        ("", None),
        ("0.1", None),
        ("-5.1", None),
        ("5.", None),
        ("5.1.2", None),
        ("\u0665.1", None),
        ("9" * 30, None),
        (True, None),
        (5.5, None),
        (None, None),
        ([], None),
        ({"id": "x"}, None),
    ],
)
def test_identities(value: object, identity: tuple[int, int] | None) -> None:
    expected = ProjectIdentity(label_studio_id=identity[0], created_stamp=identity[1]) if identity else None
    assert parse_identity(value) == expected


def test_setup_without_a_project_is_invalid() -> None:
    with pytest.raises(InvalidRequest, match="which project") as caught:
        SetupRequest.parse({"schema": CONFIG})
    assert caught.value.field == "project"


def test_setup_without_a_usable_schema_is_fine() -> None:
    for schema in (None, 3):
        assert SetupRequest.parse({"project": "5.1", "schema": schema}).label_config is None


def test_no_token_survives_setup(capsys: pytest.CaptureFixture[str]) -> None:
    body = {"project": "5.1", "schema": CONFIG, "access_token": "canary", "hostname": "http://x"}
    assert "canary" not in repr(SetupRequest.model_validate(body)) + repr(SetupRequest.parse(body))
    assert "canary" not in capsys.readouterr().out


# --- predict -------------------------------------------------------------------------------------------


def test_tasks_that_cannot_be_understood_keep_their_place() -> None:
    tasks = [{"id": 1, "data": {"image": "/a"}}, None, {"id": "x"}, {"id": 2, "data": "?"}, {"id": 3}]
    request = PredictRequest.parse({"tasks": tasks, "project": "5.1", "label_config": CONFIG})
    assert request.tasks == (
        Task(id=1, image_url="/a"),
        Task(id=-2, image_url=None),
        Task(id=-3, image_url=None),
        Task(id=2, image_url=None),
        Task(id=3, image_url=None),
    )
    assert not request.is_interactive


@pytest.mark.parametrize("params", [None, 3, {}, {"context": None}, {"context": "x"}])
def test_requests_without_context_are_not_interactive(params: object) -> None:
    assert not PredictRequest.parse({"tasks": [], "project": "5.1", "params": params}).is_interactive


def test_requests_with_context_are_interactive() -> None:
    request = PredictRequest.parse({"tasks": [], "project": 5, "params": {"context": {"result": []}}})
    assert request.is_interactive
    assert request.project.identity == ProjectIdentity(label_studio_id=5, created_stamp=UNKNOWN_STAMP)


@pytest.mark.parametrize(
    ("body", "field"),
    [({"project": "5.1"}, "tasks"), ({"tasks": {}, "project": "5.1"}, "tasks"), ({"tasks": []}, "project")],
)
def test_requests_without_tasks_or_project_are_invalid(body: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PredictRequest.parse(body)
    assert caught.value.field == field


def test_each_task_gets_an_entry() -> None:
    schema = read_label_config(CONFIG).schema
    results = [
        Suggestion(task_id=1, class_names=("cat",), score=0.25, version="v"),
        NoSuggestion(task_id=2, reason="no image"),
        Suggestion(task_id=3, class_names=("gone",), score=0.25, version="v"),
    ]
    first, second, third = encode_predict_response(results, schema)["results"]
    assert (first["score"], first["model_version"], first["result"][0]["value"]) == (0.25, "v", {"choices": ["cat"]})
    assert (second, third) == ({}, {})
    assert encode_predict_response(results, None) == {"results": [{}, {}, {}]}


def test_the_small_answers() -> None:
    assert encode_setup_response("p5-v1-abc") == {"model_version": "p5-v1-abc"}
    assert encode_versions(("a", "b")) == {"versions": ["a", "b"]}


# --- calls of older versions -----------------------------------------------------------------------------


def test_training_requests() -> None:
    requested = parse_training_request({"project": "5.7"})
    assert isinstance(requested, TrainingRequested)
    assert requested.project.identity == ProjectIdentity(label_studio_id=5, created_stamp=7)
    assert parse_training_request({}) == UnclearEvent(action="START_TRAINING")
    assert isinstance(parse_training_request(event()), AnnotationsSeen)


@pytest.mark.parametrize(("body", "job"), [({"job": 3}, 3), ({"job": "3"}, 3), ({"job": "x"}, None), ({}, None)])
def test_job_status_requests(body: object, job: int | None) -> None:
    assert JobStatusRequest.parse(body) == job
