"""The gateway against a real Label Studio."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from backend.domain import AnnotatedTask, AnnotationsSeen, Event, LabelSchema, Suggestion, TasksSeen
from backend.errors import LabelStudioRejected, LabelStudioUnauthorized
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.payloads import PredictRequest, SetupRequest, parse_event
from backend.local_label_studio import LocalLabelStudio

pytestmark = pytest.mark.label_studio

CONFIG = (
    '<View><Image name="img" value="$image"/><Choices name="c" toName="img"><Choice value="cat"/>'
    '<Choice value="dog"/></Choices></View>'
)
NESTED = (
    '<View><Image name="img" value="$image"/><Choices name="c" toName="img" allowNested="true">'
    '<Choice value="animal"><Choice value="cat"/><Choice value="dog"/></Choice><Choice value="car"/></Choices></View>'
)


@dataclass
class Backend:
    """A machine learning backend that notes what Label Studio sends."""

    url: str = ""
    received: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    def bodies(self, path: str) -> list[Any]:
        return [body for each, _, body in self.received if each == path]

    def events(self) -> list[Event]:
        return [parse_event(body) for body in self.bodies("/webhook")]


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            backend.received.append((self.path, dict(self.headers), body))
            content = json.dumps({"model_version": "v1", "results": [{} for _ in body.get("tasks", ())]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 - names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    backend.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield backend
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Annotator:
    """What people do in Label Studio, done through its API."""

    url: str
    session: requests.Session

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self.session.request(method, self.url + path, timeout=60, **arguments)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def create_project(self, label_config: str = CONFIG, n_tasks: int = 0) -> int:
        project: int = self.call("POST", "/api/projects/", json={"title": "test", "label_config": label_config})["id"]
        if n_tasks:
            tasks = [{"image": f"http://images.example/{number}.png"} for number in range(n_tasks)]
            self.call("POST", f"/api/projects/{project}/import", json=tasks)
        return project

    def connect(self, project: int, backend: Backend, title: str = "tandem") -> None:
        self.call("POST", "/api/ml", json={"project": project, "url": backend.url, "title": title})

    def annotate(self, task: int, *labels: str, **other: object) -> int:
        region = {"from_name": "c", "to_name": "img", "type": "choices", "value": {"choices": list(labels)}}
        body = {"result": [region] if labels else [], **other}
        annotation: int = self.call("POST", f"/api/tasks/{task}/annotations/", json=body)["id"]
        return annotation


@pytest.fixture
def annotator(label_studio: LocalLabelStudio) -> Iterator[Annotator]:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Token {label_studio.token}"
        yield Annotator(label_studio.url, session)


@pytest.fixture
def client(label_studio: LocalLabelStudio) -> Iterator[LabelStudioClient]:
    client = LabelStudioClient(label_studio.url, label_studio.token, "secret")
    yield client
    client.close()


def schema_of(client: LabelStudioClient, project: int) -> LabelSchema:
    config = client.project(project).label_config
    assert config is not None
    assert config.schema is not None
    return config.schema


def tasks_of(client: LabelStudioClient, project: int) -> list[AnnotatedTask]:
    return [each for page in client.annotated_tasks(project, schema_of(client, project)) for each in page]


def test_the_api_says_the_same_as_events_and_requests(
    annotator: Annotator, client: LabelStudioClient, backend: Backend
) -> None:
    project = annotator.create_project()
    annotator.connect(project, backend)
    annotator.call(
        "POST",
        f"/api/projects/{project}/import",
        files={"file": ("urls.txt", "http://images.example/bare-1.png\nhttp://images.example/bare-2.png\n")},
    )
    annotator.call("POST", f"/api/projects/{project}/import", json=[{"image": "s3://bucket/a b.png"}])
    first, second, third = (each.task.id for each in tasks_of(client, project))
    changed = annotator.annotate(first, "cat")
    annotator.call("PATCH", f"/api/annotations/{changed}/", json={"ground_truth": True})
    annotator.annotate(first, "dog")
    annotator.annotate(second, "dog", was_cancelled=True)
    annotator.annotate(third)

    tasks = tasks_of(client, project)
    assert [each.task.image_url for each in tasks] == [
        "http://images.example/bare-1.png",
        "http://images.example/bare-2.png",
        "s3://bucket/a b.png",
    ]
    labels = [[(each.class_names, each.ground_truth) for each in task.annotations] for task in tasks]
    assert labels == [[(("cat",), True), (("dog",), False)], [((), False)], [((), False)]]

    events = backend.events()
    seen_tasks = {task.id: task for event in events if isinstance(event, TasksSeen) for task in event.tasks}
    assert seen_tasks == {each.task.id: each.task for each in tasks}
    newest = {
        annotation.id: annotation
        for event in events
        if isinstance(event, AnnotationsSeen)
        for annotation in event.annotations
    }
    assert newest == {annotation.id: annotation for each in tasks for annotation in each.annotations}

    annotator.call("GET", f"/api/tasks/{third}/")
    request = PredictRequest.parse(backend.bodies("/predict")[-1])
    assert request.tasks == (tasks[2].task,)
    snapshot = client.project(project)
    identities = {event.project.identity for event in events if event.project}
    assert identities == {snapshot.identity, request.project.identity}
    assert SetupRequest.parse(backend.bodies("/setup")[-1]).identity == snapshot.identity
    assert (snapshot.title, snapshot.task_count, snapshot.annotation_count) == ("test", 3, 3)


def test_all_tasks_of_a_larger_project(annotator: Annotator, client: LabelStudioClient) -> None:
    project = annotator.create_project(n_tasks=450)
    schema = schema_of(client, project)
    pages = client.annotated_tasks(project, schema)
    ids = [each.task.id for each in next(pages)]
    # What goes meanwhile must not move what is still to come out of sight.
    annotator.call("DELETE", f"/api/tasks/{ids[0]}/")
    ids += [each.task.id for page in pages for each in page]
    assert len(ids) == 450
    assert ids == sorted(set(ids))
    assert len(tasks_of(client, project)) == 449


def test_connected_projects(annotator: Annotator, client: LabelStudioClient, backend: Backend) -> None:
    connected, other = annotator.create_project(), annotator.create_project()
    annotator.connect(connected, backend)
    found = client.connected_projects(backend.url + "/")
    assert connected in found
    assert other not in found
    assert client.connected_projects("http://nobody.example") == []


def test_a_deleted_project_is_not_found(annotator: Annotator, client: LabelStudioClient) -> None:
    project = annotator.create_project()
    annotator.call("DELETE", f"/api/projects/{project}/")
    with pytest.raises(LabelStudioRejected) as caught:
        client.project(project)
    assert caught.value.status == 404


def test_titles_of_other_backends(annotator: Annotator, client: LabelStudioClient, backend: Backend) -> None:
    project = annotator.create_project()
    annotator.connect(project, backend, title="Detector")
    assert client.titles_of_others(project, "http://tandem.example") == {"Detector"}
    assert client.titles_of_others(project, backend.url + "/") == set()


def test_the_webhook_made_by_label_studio_is_given_our_secret(
    annotator: Annotator, client: LabelStudioClient, backend: Backend
) -> None:
    project = annotator.create_project(n_tasks=1)
    annotator.connect(project, backend)
    (webhook,) = client.webhooks(project)
    assert webhook.url == f"{backend.url}/webhook"
    assert not webhook.has_our_secret
    broken = {"is_active": False, "send_payload": False, "send_for_all_actions": False, "headers": {"Other": "kept"}}
    annotator.call("PATCH", f"/api/webhooks/{webhook.id}/", json={**broken, "actions": ["TASKS_CREATED"]})
    client.repair_webhook(project, client.webhooks(project)[0])
    (webhook,) = client.webhooks(project)
    assert webhook.is_active
    assert webhook.sends_payload
    assert webhook.all_actions
    assert webhook.has_our_secret

    annotator.annotate(tasks_of(client, project)[0].task.id, "cat")
    path, headers, body = backend.received[-1]
    assert (path, body["action"]) == ("/webhook", "ANNOTATION_CREATED")
    assert headers["X-Webhook-Secret"] == "secret"
    assert headers["Other"] == "kept"


def test_a_webhook_that_is_missing_is_made(annotator: Annotator, client: LabelStudioClient, backend: Backend) -> None:
    project = annotator.create_project()
    assert client.webhooks(project) == []
    client.create_webhook(project, f"{backend.url}/webhook")
    (webhook,) = client.webhooks(project)
    assert webhook.is_active
    assert webhook.has_our_secret
    annotator.call("PATCH", f"/api/projects/{project}/", json={"title": "renamed"})
    assert backend.bodies("/webhook")[-1]["project"]["title"] == "renamed"


def suggest(client: LabelStudioClient, project: int, version: str, *class_names: str) -> list[Suggestion]:
    return [
        Suggestion(task_id=each.task.id, class_names=class_names, score=1 / (2 + position), version=version)
        for position, each in enumerate(tasks_of(client, project))
    ]


def test_pushed_predictions_lead_annotators_to_the_lowest_score(
    annotator: Annotator, client: LabelStudioClient
) -> None:
    project = annotator.create_project(n_tasks=5)
    annotator.call("PATCH", f"/api/projects/{project}/", json={"sampling": "Uncertainty sampling"})
    schema = schema_of(client, project)
    suggestions = suggest(client, project, "v1", "cat")
    with pytest.raises(LabelStudioRejected):
        client.set_model_version(project, "v1")
    assert client.import_predictions(project, schema, suggestions) == 5
    client.set_model_version(project, "v1")
    assert client.project(project).model_version == "v1"
    offered = annotator.call("GET", f"/api/projects/{project}/next")
    assert offered["id"] == suggestions[-1].task_id
    assert offered["predictions"][0]["result"][0]["value"] == {"choices": ["cat"]}

    assert client.import_predictions(project, schema, suggest(client, project, "v2", "dog")) == 5
    assert client.model_versions(project) == {"v1": 5, "v2": 5}
    client.set_model_version(project, "v2")
    client.delete_predictions(project, "v1")
    assert client.model_versions(project) == {"v2": 5}
    assert client.project(project).model_version == "v2"


def test_predictions_for_tasks_that_are_gone_are_left_out(annotator: Annotator, client: LabelStudioClient) -> None:
    project = annotator.create_project(n_tasks=9)
    suggestions = suggest(client, project, "v1", "cat")
    annotator.call("DELETE", f"/api/tasks/{suggestions[4].task_id}/")
    assert client.import_predictions(project, schema_of(client, project), suggestions) == 8


def test_nested_predictions_are_stored_as_the_editor_writes_them(
    annotator: Annotator, client: LabelStudioClient
) -> None:
    project = annotator.create_project(NESTED, n_tasks=1)
    schema = schema_of(client, project)
    assert client.import_predictions(project, schema, suggest(client, project, "v1", "animal > cat")) == 1
    (prediction,) = annotator.call("GET", "/api/predictions/", params={"project": project})
    assert prediction["result"][0]["value"] == {"choices": [["animal", "cat"]]}


def test_deleting_any_version_leaves_a_live_backend_in_use(
    annotator: Annotator, client: LabelStudioClient, backend: Backend
) -> None:
    project = annotator.create_project(n_tasks=1)
    annotator.connect(project, backend, title="tandem live")
    assert client.project(project).model_version == "tandem live"
    client.import_predictions(project, schema_of(client, project), suggest(client, project, "v1", "cat"))
    client.delete_predictions(project, "v1")
    assert client.project(project).model_version == "tandem live"
    assert client.model_versions(project) == {}


def test_both_kinds_of_api_key(label_studio: LocalLabelStudio, annotator: Annotator) -> None:
    project = annotator.create_project()
    for api_key in (label_studio.token, label_studio.personal_access_token()):
        client = LabelStudioClient(label_studio.url, api_key, None)
        assert client.project(project).title == "test"
        answer = requests.get(f"{label_studio.url}/api/projects/{project}/", headers=client.authorization(), timeout=30)
        assert answer.status_code == 200
        client.close()


def test_api_keys_that_are_refused(label_studio: LocalLabelStudio) -> None:
    header, payload, _ = label_studio.personal_access_token().split(".")
    for api_key, kind in (("0" * 40, "legacy token that"), (f"{header}.{payload}.forged", "personal access token")):
        client = LabelStudioClient(label_studio.url, api_key, None)
        with pytest.raises(LabelStudioUnauthorized, match=f"is a {kind}"):
            client.connected_projects("http://nobody.example")
        client.close()


def test_legacy_tokens_switched_off(label_studio: LocalLabelStudio, client: LabelStudioClient) -> None:
    personal = LabelStudioClient(label_studio.url, label_studio.personal_access_token(), None)

    def switch(on: bool) -> None:
        answer = requests.post(
            f"{label_studio.url}/api/jwt/settings",
            json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": on},
            headers=personal.authorization(),
            timeout=30,
        )
        assert answer.ok, answer.text

    switch(False)
    try:
        with pytest.raises(LabelStudioUnauthorized, match="legacy tokens are switched off"):
            client.connected_projects("http://nobody.example")
    finally:
        switch(True)
        personal.close()


def test_a_project_that_is_not_there(client: LabelStudioClient) -> None:
    with pytest.raises(LabelStudioRejected) as caught:
        client.project(999_999)
    assert caught.value.status == 404
