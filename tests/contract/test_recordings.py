"""Every recorded request of a real Label Studio 1.23.2 is understood, exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pytest

from backend.domain import (
    Annotation,
    AnnotationsDeleted,
    AnnotationsSeen,
    ProjectIdentity,
    ProjectSeen,
    ProjectSnapshot,
    Sampling,
    Suggestion,
    Task,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.label_studio.answers import WebhookPayload
from backend.label_studio.codecs import decode_annotation, encode_suggestion, read_label_config
from backend.label_studio.payloads import (
    AnnotationPayload,
    PredictRequest,
    SetupRequest,
    parse_event,
    parse_identity,
    parse_training_request,
)

RECORDINGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "recordings").glob("*.json")}
DATA_URI = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGNgZGKGIwbiOAAJ1ABhE9S39wAAAABJRU5E"
    "rkJggg=="
)
FAVICON = "http://label-studio:8080/static/images/favicon.png"
CAT_OR_DOG = ("cat", "dog")


def names_of(path: str) -> list[str]:
    return sorted(name for name, each in RECORDINGS.items() if each.get("request", {}).get("path") == path)


def body_of(name: str) -> dict[str, Any]:
    body: dict[str, Any] = RECORDINGS[name]["request"]["json"]
    return body


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Annotations with their tasks, or tasks alone; times are those of 2026-11-23."""

    project: str
    tasks: tuple[tuple[int, str], ...]
    annotations: tuple[tuple[int, int, tuple[str, ...], str], ...] = ()
    ground_truth: bool = False

    def event(self, snapshot: ProjectSnapshot) -> AnnotationsSeen | TasksSeen:
        tasks = tuple(Task(id=task_id, image_url=url) for task_id, url in self.tasks)
        if not self.annotations:
            return TasksSeen(project=snapshot, tasks=tasks)
        annotations = tuple(
            Annotation(
                id=annotation_id,
                task_id=task_id,
                class_names=class_names,
                updated_at=datetime.combine(date(2026, 11, 23), time.fromisoformat(moment), UTC),
                ground_truth=self.ground_truth,
                annotator_id=1,
            )
            for annotation_id, task_id, class_names, moment in self.annotations
        )
        return AnnotationsSeen(project=snapshot, tasks=tasks, annotations=annotations)


def one(
    project: str,
    annotation_id: int,
    class_names: tuple[str, ...],
    moment: str,
    *,
    task: tuple[int, str] = (9, "/data/upload/1/a.png"),
    ground_truth: bool = False,
) -> Seen:
    return Seen(
        project=project,
        tasks=(task,),
        annotations=((annotation_id, task[0], class_names, moment),),
        ground_truth=ground_truth,
    )


PROJECT = "5.1795460391"
FIRST = (1, "/data/upload/5/b8f05ca8-img_0.png")
SECOND = (2, "/data/upload/5/c941ba7e-img_1.png")
SEEN = {
    "basicauth_webhook_ANNOTATION_CREATED_has_no_auth": one(
        "8.1795460617", 18, ("cat",), "19:03:39.804876", task=(11, "/data/upload/1/a.png")
    ),
    "config_choices_alias_hotkey__ANNOTATION_CREATED": one("13.1795460719", 25, ("cat",), "19:05:20.236279"),
    # Not a class of this config: nothing is learned from it.
    "config_choices_nested__ANNOTATION_CREATED": one("14.1795460721", 26, ("animal > cat",), "19:05:22.506911"),
    "config_data_uri__ANNOTATION_CREATED": one("24.1795460745", 36, ("cat",), "19:05:46.467425", task=(9, DATA_URI)),
    "config_escaped_and_unicode_labels__ANNOTATION_CREATED": one(
        "23.1795460743", 35, ('Кошка & "co"',), "19:05:44.519700"
    ),
    "config_http_url__ANNOTATION_CREATED": one("25.1795460747", 37, ("cat",), "19:05:48.398213", task=(9, FAVICON)),
    "config_multiple_choice__ANNOTATION_CREATED": one("11.1795460714", 23, ("cat", "bird"), "19:05:15.565705"),
    "config_nested_value_key__ANNOTATION_CREATED": one("22.1795460741", 34, ("dog",), "19:05:42.498638"),
    "config_rectanglelabels_and_choices__ANNOTATION_CREATED": one("17.1795460729", 29, ("ok",), "19:05:30.233147"),
    "config_several_choices_controls__ANNOTATION_CREATED": one("12.1795460717", 24, ("cat",), "19:05:18.341947"),
    "config_two_images__ANNOTATION_CREATED": one(
        "19.1795460733", 31, ("cat",), "19:05:34.958781", task=(9, "/data/upload/1/l.png")
    ),
    "config_undefined_key__ANNOTATION_CREATED": one("26.1795460749", 38, ("cat",), "19:05:50.339837"),
    "manual_webhook_custom_headers_ANNOTATION_CREATED": one(
        "8.1795460617", 20, ("cat",), "19:03:41.403432", task=(12, "/data/upload/1/b.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_accept_prediction": one(
        "32.1795461002", 51, ("dog",), "19:10:31.561735", task=(1017, "/data/upload/32/be8dfc53-u2.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_alias": one(
        "32.1795461002", 49, ("cat",), "19:10:19.628684", task=(1015, "/data/upload/32/5ff42935-u0.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_multiple": one(
        "38.1795461278", 57, ("x", "z"), "19:14:45.583588", task=(1015, "/data/upload/38/e7df2a19-n.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_nested_choices": one(
        "36.1795461260", 55, (), "19:14:28.315646", task=(1015, "/data/upload/36/94baaad7-n.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_nested_choices_allowNested": one(
        "37.1795461270", 56, ("animal > cat",), "19:14:36.661836", task=(1015, "/data/upload/37/7c088589-n.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_single_radio": one(
        "39.1795461287", 58, ("y",), "19:14:53.835200", task=(1015, "/data/upload/39/42dc09ec-n.png")
    ),
    "ui_webhook_ANNOTATION_CREATED_skip": one(
        "32.1795461002", 50, (), "19:10:28.523863", task=(1016, "/data/upload/32/e0d2da75-u1.png")
    ),
    "webhook_ANNOTATIONS_CREATED_from_predictions_action": Seen(
        project=PROJECT,
        tasks=((5, DATA_URI), (6, FAVICON)),
        annotations=((13, 5, ("cat",), "19:00:08.671139"), (14, 6, ("cat",), "19:00:08.671198")),
    ),
    "webhook_ANNOTATION_CREATED_empty_result": one(
        PROJECT, 9, (), "19:00:04.385460", task=(4, "/data/upload/5/58b288db-img_a.png")
    ),
    "webhook_ANNOTATION_CREATED_from_prediction": one(PROJECT, 11, ("cat",), "19:00:05.226924", task=(5, DATA_URI)),
    "webhook_ANNOTATION_CREATED_ground_truth": one(
        PROJECT, 8, ("cat",), "19:00:03.984145", task=(3, "/data/upload/5/a295f2cf-img_2.png"), ground_truth=True
    ),
    "webhook_ANNOTATION_CREATED_second_on_same_task": one(PROJECT, 10, ("cat",), "19:00:04.756550", task=FIRST),
    "webhook_ANNOTATION_CREATED_single_choice": one(PROJECT, 5, ("cat",), "18:59:59.367434", task=FIRST),
    "webhook_ANNOTATION_CREATED_skipped": one(PROJECT, 6, (), "19:00:00.977509", task=SECOND),
    "webhook_ANNOTATION_CREATED_skipped_with_result": one(PROJECT, 7, (), "19:00:02.530571", task=SECOND),
    "webhook_ANNOTATION_CREATED_with_prediction_snapshot": one(
        PROJECT, 12, ("dog",), "19:00:05.914610", task=(6, FAVICON)
    ),
    "webhook_ANNOTATION_UPDATED_ground_truth": one(
        PROJECT, 5, ("dog",), "19:00:00.542216", task=FIRST, ground_truth=True
    ),
    "webhook_ANNOTATION_UPDATED_label_changed": one(PROJECT, 5, ("dog",), "18:59:59.934248", task=FIRST),
    "webhook_ANNOTATION_UPDATED_now_skipped": one(PROJECT, 7, (), "19:00:03.661431", task=SECOND),
    "webhook_ANNOTATION_UPDATED_unskipped": one(PROJECT, 7, ("dog",), "19:00:03.092962", task=SECOND),
    "webhook_TASKS_CREATED_api_tasks": Seen(project=PROJECT, tasks=((9, "/data/upload/none.png"),)),
    "webhook_TASKS_CREATED_import_with_annotations": Seen(
        project=PROJECT, tasks=((7, "/data/upload/x/1.png"), (8, "/data/upload/x/2.png"))
    ),
    "webhook_TASKS_CREATED_json_import": Seen(project=PROJECT, tasks=((5, DATA_URI), (6, FAVICON))),
    "webhook_TASKS_CREATED_local_files_storage": Seen(
        project="10.1795460708",
        tasks=(
            (14, "http://label-studio:8080/data/local-files/?d=pets/1.png"),
            (15, "http://label-studio:8080/data/local-files/?d=pets/sub%20dir/%C3%A4%202.png"),
        ),
    ),
    "webhook_TASKS_CREATED_upload": Seen(project=PROJECT, tasks=((4, "/data/upload/5/58b288db-img_a.png"),)),
}
DELETED = {
    "webhook_ANNOTATIONS_DELETED_api": (AnnotationsDeleted, (10,)),
    "webhook_ANNOTATIONS_DELETED_bulk_action": (AnnotationsDeleted, (11, 12)),
    "webhook_TASKS_DELETED_api": (TasksDeleted, (9,)),
    "webhook_TASKS_DELETED_bulk_action": (TasksDeleted, (1,)),
}
PROJECT_ONLY = {
    "basicauth_webhook_START_TRAINING": (TrainingRequested, "8.1795460617"),
    "ui_webhook_START_TRAINING": (TrainingRequested, "33.1795461093"),
    "webhook_START_TRAINING_automatic": (TrainingRequested, PROJECT),
    "webhook_START_TRAINING_button": (TrainingRequested, PROJECT),
    "webhook_PROJECT_UPDATED_label_added": (ProjectSeen, PROJECT),
    "webhook_PROJECT_UPDATED_sampling": (ProjectSeen, PROJECT),
    "webhook_PROJECT_UPDATED_title": (ProjectSeen, PROJECT),
    # Label configs without a part that can be learned: of such a project only itself is seen.
    "config_dynamic_choices_from_task__ANNOTATION_CREATED": (ProjectSeen, "21.1795460739"),
    "config_image_list__ANNOTATION_CREATED": (ProjectSeen, "20.1795460736"),
    "config_per_region_choices__ANNOTATION_CREATED": (ProjectSeen, "18.1795460731"),
    "config_rating__ANNOTATION_CREATED": (ProjectSeen, "16.1795460726"),
    "config_taxonomy__ANNOTATION_CREATED": (ProjectSeen, "15.1795460723"),
}
UNCLEAR = {
    "manual_webhook_no_payload": ("ANNOTATION_CREATED", None),
    "webhook_LABEL_LINK_DELETED": ("LABEL_LINK_DELETED", "7.1795460614"),
    "webhook_LABEL_LINK_UPDATED": ("LABEL_LINK_UPDATED", "7.1795460614"),
}


def snapshot_of(name: str, identity: str) -> ProjectSnapshot:
    project = body_of(name)["project"]
    label_studio_id, stamp = identity.split(".")
    return ProjectSnapshot(
        identity=ProjectIdentity(label_studio_id=int(label_studio_id), created_stamp=int(stamp)),
        title=project["title"],
        label_config=read_label_config(project["label_config"]),
        task_count=project["task_number"],
        annotation_count=project["total_annotations_number"],
        model_version=project["model_version"],
        sampling=Sampling(project["sampling"].removesuffix(" sampling").lower()),
    )


def test_each_webhook_recording_has_an_expected_event() -> None:
    assert sorted([*SEEN, *DELETED, *PROJECT_ONLY, *UNCLEAR]) == names_of("/webhook")


@pytest.mark.parametrize("name", SEEN)
def test_tasks_and_annotations(name: str) -> None:
    expected = SEEN[name]
    assert parse_event(body_of(name)) == expected.event(snapshot_of(name, expected.project))


@pytest.mark.parametrize("name", DELETED)
def test_deletions(name: str) -> None:
    kind, ids = DELETED[name]
    event = parse_event(body_of(name))
    assert isinstance(event, kind)
    assert event.project == snapshot_of(name, PROJECT)
    assert (event.annotation_ids if isinstance(event, AnnotationsDeleted) else event.task_ids) == ids


@pytest.mark.parametrize("name", PROJECT_ONLY)
def test_projects(name: str) -> None:
    kind, identity = PROJECT_ONLY[name]
    assert parse_event(body_of(name)) == kind(project=snapshot_of(name, identity))


@pytest.mark.parametrize("name", UNCLEAR)
def test_events_that_say_too_little(name: str) -> None:
    action, identity = UNCLEAR[name]
    project = snapshot_of(name, identity) if identity else None
    assert parse_event(body_of(name)) == UnclearEvent(action=action, project=project)


def test_training_requests_of_older_versions_are_the_same_events() -> None:
    body = body_of("webhook_START_TRAINING_button")
    assert parse_training_request(body) == parse_event(body)


@pytest.mark.parametrize("name", names_of("/webhook"))
def test_the_same_event_as_bytes(name: str) -> None:
    assert parse_event(json.dumps(body_of(name)).encode()) == parse_event(body_of(name))


def test_identity_is_the_same_in_events_and_requests() -> None:
    event = body_of("webhook_ANNOTATION_CREATED_single_choice")["project"]
    assert parse_identity(event) == parse_identity(body_of("predict_next_task")["project"])
    assert parse_identity(event) == ProjectIdentity(label_studio_id=5, created_stamp=1795460391)


# --- setup and predict ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names_of("/setup"))
def test_setup_says_project_and_label_config_and_drops_the_token(name: str) -> None:
    snapshot = SetupRequest.parse(body_of(name))
    assert snapshot == ProjectSnapshot(
        identity=parse_identity(body_of(name)["project"]), label_config=read_label_config(body_of(name)["schema"])
    )
    assert snapshot.label_config is not None
    assert snapshot.label_config.schema is not None
    assert snapshot.label_config.schema.class_names[:2] == CAT_OR_DOG
    assert "REDACTED_LEGACY_TOKEN" not in repr(SetupRequest.model_validate(body_of(name)))


KEYS = {
    "config_image_list__predict": None,
    "config_dynamic_choices_from_task__predict": None,
    "config_per_region_choices__predict": None,
    "config_rating__predict": None,
    "config_taxonomy__predict": None,
    "config_two_images__predict": ["left"],
    "config_nested_value_key__predict": ["meta", "photo"],
}


@pytest.mark.parametrize("name", names_of("/predict"))
def test_predict_has_each_task_in_order_with_its_image(name: str) -> None:
    body = body_of(name)
    request = PredictRequest.parse(json.dumps(body).encode())
    expected = []
    for task in body["tasks"]:
        value: Any = task["data"]
        keys = KEYS.get(name, ["image"])
        for key in keys or []:
            value = value[key]
        expected.append(Task(id=task["id"], image_url=value if keys else None))
    assert request.tasks == tuple(expected)
    assert request.project.identity == parse_identity(body["project"])
    assert request.is_interactive == (name == "predict_interactive_context")


def test_the_webhook_that_label_studio_registers_by_itself_is_readable() -> None:
    (hook,) = RECORDINGS["_webhook_registered_automatically"]["webhooks"]
    webhook = WebhookPayload.model_validate(hook)
    assert (webhook.id, webhook.url, webhook.headers) == (3, "http://backend:9090/webhook", {})
    assert webhook.is_active
    assert webhook.send_payload
    assert webhook.send_for_all_actions


def test_calls_without_a_body_are_the_only_others() -> None:
    others = [name for name, each in RECORDINGS.items() if each.get("request", {}).get("method") == "GET"]
    assert sorted(others) == ["health_get", "versions_get"]


# --- label configs ---------------------------------------------------------------------------------------

CONFIGS = {
    name: body_of(name)["label_config"] if "label_config" in body_of(name) else body_of(name)["project"]["label_config"]
    for name in [*names_of("/predict"), *names_of("/webhook")]
    if "label_config" in body_of(name) or "project" in body_of(name)
}
CLASSES = {
    "config_choices_alias_hotkey": CAT_OR_DOG,
    "config_choices_nested": ("animal", "car"),
    "config_data_uri": CAT_OR_DOG,
    "config_dynamic_choices_from_task": "takes its choices from each task",
    "config_escaped_and_unicode_labels": ('Кошка & "co"', "dog <2>", "鳥"),
    "config_http_url": CAT_OR_DOG,
    "config_image_list": 'has no value="$key" of its own',
    "config_multiple_choice": ("cat", "dog", "bird"),
    "config_nested_value_key": CAT_OR_DOG,
    "config_per_region_choices": "is asked for each region",
    "config_rating": "<Rating name='stars'> is not a <Choices>",
    "config_rectanglelabels_and_choices": ("ok", "bad"),
    "config_several_choices_controls": CAT_OR_DOG,
    "config_taxonomy": "<Taxonomy name='tax'> is not a <Choices>",
    "config_two_images": CAT_OR_DOG,
    "config_undefined_key": CAT_OR_DOG,
    "ui_webhook_ANNOTATION_CREATED_multiple": ("x", "y", "z"),
    "ui_webhook_ANNOTATION_CREATED_nested_choices": ("animal", "car"),
    "ui_webhook_ANNOTATION_CREATED_nested_choices_allowNested": ("animal", "animal > cat", "animal > dog", "car"),
    "ui_webhook_ANNOTATION_CREATED_single_radio": ("x", "y"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_label_configs(name: str) -> None:
    recorded = [config for each, config in CONFIGS.items() if each.split("__")[0] == name]
    assert recorded
    for xml in recorded:
        config = read_label_config(xml)
        expected = CLASSES[name]
        if isinstance(expected, str):
            assert config.schema is None
            assert config.problem is not None
            assert expected in config.problem
            assert "Tandem learns one <Choices>" in config.problem
        else:
            assert config.problem is None
            assert config.schema is not None
            assert config.schema.class_names == expected
            assert config.schema.multiple == ("multiple" in name)
            assert config.schema.nested == ("allowNested" in name)


def test_ignored_controls_are_named() -> None:
    several = read_label_config(CONFIGS["config_several_choices_controls__predict"])
    boxes = read_label_config(CONFIGS["config_rectanglelabels_and_choices__predict"])
    assert several.note == "ignored: <Choices name='quality'> comes after the one in use"
    assert boxes.note == "ignored: <RectangleLabels name='box'> is not a <Choices>"


# --- suggestions, against Label Studio's own judge -----------------------------------------------------------


def answers(xml: str) -> list[tuple[str, ...]]:
    schema = read_label_config(xml).schema
    assert schema is not None
    singles: list[tuple[str, ...]] = [(name,) for name in schema.class_names]
    return [*singles, (), schema.class_names] if schema.multiple else singles


SUPPORTED_CONFIGS = sorted({xml for xml in CONFIGS.values() if read_label_config(xml).schema})


@pytest.mark.parametrize("xml", [xml for xml in SUPPORTED_CONFIGS if "allowNested" not in xml])
def test_label_interface_accepts_each_suggestion(xml: str) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    judge = LabelInterface(xml)
    schema = read_label_config(xml).schema
    assert schema is not None
    for class_names in answers(xml):
        suggestion = Suggestion(task_id=3, class_names=class_names, score=0.75, version="p5-v1-1a2b3c4d")
        assert judge.validate_prediction(encode_suggestion(suggestion, schema), return_errors=True) == []
    judged = judge.validate_prediction(
        {"result": [{"from_name": "nobody", "to_name": "image", "type": "choices", "value": {}}]}, return_errors=True
    )
    assert judged != []


def test_nested_suggestions_are_what_the_editor_submits() -> None:
    """``LabelInterface`` 2.1 cannot judge paths: it refuses the editor's own annotation as well."""
    from label_studio_sdk.label_interface import LabelInterface

    body = body_of("ui_webhook_ANNOTATION_CREATED_nested_choices_allowNested")
    schema = read_label_config(body["project"]["label_config"]).schema
    assert schema is not None
    suggestion = Suggestion(task_id=1015, class_names=("animal > cat",), score=0.75, version="p37-v1-1a2b3c4d")
    (submitted,) = body["annotation"]["result"]
    (suggested,) = encode_suggestion(suggestion, schema)["result"]
    assert {key: suggested[key] for key in ("from_name", "to_name", "type", "value")} == {
        key: submitted[key] for key in ("from_name", "to_name", "type", "value")
    }
    judge = LabelInterface(body["project"]["label_config"])
    assert judge.validate_prediction({"result": [submitted]}, return_errors=True) != []


@pytest.mark.parametrize("xml", SUPPORTED_CONFIGS)
def test_an_accepted_suggestion_comes_back_as_the_same_label(xml: str) -> None:
    schema = read_label_config(xml).schema
    assert schema is not None
    for class_names in answers(xml):
        suggestion = Suggestion(task_id=3, class_names=class_names, score=0.75, version="p5-v1-1a2b3c4d")
        payload = AnnotationPayload.model_validate(
            {"id": 1, "task": 3, "updated_at": "2026-11-23T19:00:00Z", **encode_suggestion(suggestion, schema)}
        )
        assert decode_annotation(payload, schema).class_names == class_names
