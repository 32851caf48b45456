"""The web application, asked exactly what a real Label Studio 1.23.2 asked."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

import backend.errors
from backend.adapters.database import SqlDatabase
from backend.app import STATUS_OF, create_app
from backend.bootstrap import Container
from backend.domain import (
    AnnotatedTask,
    Annotation,
    AnnotationsDeleted,
    AnnotationsSeen,
    Event,
    Job,
    JobKind,
    Project,
    ProjectIdentity,
    ProjectSeen,
    ProjectSnapshot,
    Task,
    TasksDeleted,
    TasksSeen,
    TrainingRequested,
    UnclearEvent,
)
from backend.errors import TandemError
from backend.label_studio.codecs import read_label_config
from backend.label_studio.payloads import PredictRequest, SetupRequest, parse_event
from backend.settings import Settings
from tests.factories import NOON, make_annotation, make_task, make_version
from tests.fakes import FakeEmbedder, FakeImages, Reports
from tests.world import World, pets

RECORDINGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "recordings").glob("*.json")}
REQUESTS = {name: each["request"] for name, each in RECORDINGS.items() if "request" in each}
CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
HIDDEN = "never-show-this"


def names_of(path: str) -> list[str]:
    return sorted(name for name, each in REQUESTS.items() if each["path"] == path)


def bytes_of(name: str) -> bytes:
    return json.dumps(REQUESTS[name]["json"]).encode()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.sqlite3"
    SqlDatabase(f"sqlite:///{path}").migrate()
    return path


class Tandem:
    """The web application on a folder, with what stands behind it in reach."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        monkeypatch.setattr("backend.app.configure_logs", lambda *_, **__: None)
        monkeypatch.setattr("backend.app.Container", self._keep)
        self.folder = folder
        self.images = FakeImages(folder / "fake images")
        self.embedder = FakeEmbedder()
        app = create_app(Settings(model_dir=folder, **settings))  # type: ignore[arg-type]
        self.client: FlaskClient = app.test_client()

    def _keep(self, settings: Settings, *, storage_patience_s: float) -> Container:
        self.container = Container(settings, storage_patience_s=storage_patience_s)
        self.container.__dict__ |= {"images": self.images, "embedder": self.embedder}
        return self.container

    def replay(self, name: str) -> Any:
        asked = REQUESTS[name]
        answer = self.client.open(asked["path"], method=asked["method"], json=asked["json"])
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    def project(self, identity: ProjectIdentity) -> Project:
        with self.container.database.transaction() as stores:
            return stores.projects.resolve(identity)

    def tasks(self, project: Project) -> dict[int, str | None]:
        with self.container.database.snapshot() as stores:
            return {task.id: task.image_url for task in stores.tasks.all(project.id)}

    def annotations(self, project: Project) -> list[Annotation]:
        with self.container.database.snapshot() as stores:
            return stores.annotations.all(project.id)

    def queued(self, project: Project, kind: JobKind) -> Job | None:
        with self.container.database.snapshot() as stores:
            return stores.jobs.queued(project.id, kind)

    def know(self, snapshot: ProjectSnapshot, *entries: AnnotatedTask) -> Project:
        """Store a project with tasks and annotations, and leave no job queued."""
        self.container.ingestion.setup(snapshot)
        project = self.project(snapshot.identity)
        with self.container.database.transaction() as stores:
            stores.tasks.upsert(project.id, [entry.task for entry in entries])
            stores.annotations.upsert(project.id, [each for entry in entries for each in entry.annotations])
            for job in stores.jobs.all(project.id):
                stores.jobs.cancel(job.id, NOON)
        return project

    def learn(self, snapshot: ProjectSnapshot) -> Project:
        """Train a version that knows every class of the project's config."""
        assert snapshot.label_config is not None
        assert snapshot.label_config.schema is not None
        names = snapshot.label_config.schema.class_names
        project = self.know(
            snapshot,
            *(
                AnnotatedTask(
                    task=make_task(task_id, f"class{task_id % len(names)}"),
                    annotations=(make_annotation(task_id, task_id, names[task_id % len(names)]),),
                )
                for task_id in range(100_000, 100_000 + 6 * len(names))
            ),
        )
        self.container.embedding.run(project.id, Reports())
        self.container.training.fit_head(project.id, Reports())
        return project


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    shutil.copy(empty_database, tmp_path / "tandem.sqlite3")
    return tmp_path


@pytest.fixture
def tandem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tandem:
    return Tandem(folder, monkeypatch)


# --- every recording ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names_of("/health"))
def test_health(tandem: Tandem, name: str) -> None:
    assert tandem.replay(name) == {"status": "UP", "model_class": "Tandem"}
    assert tandem.client.get("/").get_json() == {"status": "UP", "model_class": "Tandem"}


@pytest.mark.parametrize("name", names_of("/setup"))
def test_setup(tandem: Tandem, name: str) -> None:
    snapshot = SetupRequest.parse(bytes_of(name))
    label_studio_id = snapshot.identity.label_studio_id
    assert tandem.replay(name) == {"model_version": f"p{label_studio_id}-v0-untrained"}
    assert tandem.replay(name) == {"model_version": f"p{label_studio_id}-v0-untrained"}
    project = tandem.project(snapshot.identity)
    assert project.label_config == snapshot.label_config
    assert project.event_at is None
    assert tandem.queued(project, JobKind.SYNC) is not None


def rows_expected(event: Event) -> tuple[dict[int, str | None], list[Annotation]]:
    match event:
        case TasksSeen(tasks=tasks):
            return {task.id: task.image_url for task in tasks}, []
        case AnnotationsSeen(tasks=tasks, annotations=annotations):
            return {task.id: task.image_url for task in tasks}, list(annotations)
        case _:
            return {}, []


@pytest.mark.parametrize("name", names_of("/webhook"))
def test_webhook_stores_what_the_event_says_once(tandem: Tandem, name: str) -> None:
    event = parse_event(bytes_of(name))
    first, second = tandem.replay(name), tandem.replay(name)
    assert first == second
    if event.project is None:
        assert first == {"status": "accepted"}
        assert tandem.container.projects.all() == []
        return
    project = tandem.project(event.project.identity)
    assert (project.title, project.label_config) == (event.project.title, event.project.label_config)
    assert project.event_at is not None
    assert (tandem.tasks(project), tandem.annotations(project)) == rows_expected(event)
    assert tandem.queued(project, JobKind.SYNC) is not None
    if isinstance(event, TrainingRequested):
        head = tandem.queued(project, JobKind.HEAD)
        assert head is not None
        assert first == {"status": "accepted", "job": head.id}
    else:
        assert first == {"status": "accepted"}


@pytest.mark.parametrize("name", names_of("/webhook"))
def test_webhook_queues_what_follows_in_a_project_that_is_known(tandem: Tandem, name: str) -> None:
    event = parse_event(bytes_of(name))
    known = event.project or ProjectSnapshot(
        identity=ProjectIdentity(label_studio_id=5, created_stamp=1), label_config=read_label_config(CONFIG)
    )
    deleted = (
        event.annotation_ids
        if isinstance(event, AnnotationsDeleted)
        else event.task_ids
        if isinstance(event, TasksDeleted)
        else ()
    )
    project = tandem.know(
        known,
        *(AnnotatedTask(task=Task(id=n, image_url="x"), annotations=(make_annotation(n, n, "cat"),)) for n in deleted),
    )
    tandem.replay(name)
    expected: dict[type[Any], set[JobKind]] = {
        TasksSeen: {JobKind.EMBED},
        AnnotationsSeen: {JobKind.EMBED, JobKind.HEAD, JobKind.QUERY},
        AnnotationsDeleted: {JobKind.HEAD, JobKind.QUERY},
        TasksDeleted: {JobKind.HEAD, JobKind.QUERY},
        TrainingRequested: {JobKind.SYNC, JobKind.HEAD},
        UnclearEvent: {JobKind.SYNC},
        ProjectSeen: set(),
    }
    assert {kind for kind in JobKind if tandem.queued(project, kind)} == expected[type(event)]
    if isinstance(event, AnnotationsDeleted | TasksDeleted):
        assert tandem.annotations(project) == []


def test_all_events_one_after_the_other_in_any_order(tandem: Tandem) -> None:
    for name in [*names_of("/webhook"), *reversed(names_of("/webhook"))]:
        tandem.replay(name)
    assert len(tandem.client.get("/api/projects").get_json()) > 10


@pytest.mark.parametrize("name", names_of("/predict"))
def test_predict_before_there_is_a_version(tandem: Tandem, name: str) -> None:
    asked = PredictRequest.parse(bytes_of(name))
    assert tandem.replay(name) == {"results": [{} for _ in asked.tasks]}
    project = tandem.project(asked.project.identity)
    assert project.predict_at is not None
    assert tandem.tasks(project) == {task.id: task.image_url for task in asked.tasks if task.image_url}


SUPPORTED = [
    name
    for name in names_of("/predict")
    if read_label_config(REQUESTS[name]["json"]["label_config"]).schema is not None
]


@pytest.mark.parametrize("name", SUPPORTED)
def test_predict_with_a_version(tandem: Tandem, name: str) -> None:
    asked = PredictRequest.parse(bytes_of(name))
    project = tandem.learn(asked.project)
    schema = project.schema
    assert schema is not None
    with tandem.container.database.snapshot() as stores:
        active = stores.versions.active(project.id)
    assert active is not None
    results = tandem.replay(name)["results"]
    assert len(results) == len(asked.tasks)
    for entry in results:
        assert set(entry) == {"result", "score", "model_version"}
        assert entry["model_version"] == active.name
        assert 0 < entry["score"] <= 1
        for region in entry["result"]:
            assert (region["from_name"], region["to_name"], region["type"]) == (
                schema.control_name,
                schema.object_name,
                "choices",
            )
            names = [" > ".join(each) if isinstance(each, list) else each for each in region["value"]["choices"]]
            assert set(names) <= set(schema.class_names)
            assert schema.multiple or len(names) == 1
    again = tandem.replay(name)["results"]
    # Now with images embedded next to it, which rounds otherwise on some processors.
    assert [entry["score"] for entry in again] == pytest.approx([entry["score"] for entry in results], rel=1e-6)
    assert [without_scores(entry) for entry in again] == [without_scores(entry) for entry in results]


@pytest.mark.parametrize("held_back", [{}, {"suggest_min_accuracy": 0.01}, {"audit_share": 1.0}])
def test_what_the_settings_hold_back_has_a_score_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, held_back: dict[str, float]
) -> None:
    tandem = Tandem(folder, monkeypatch, **held_back)
    asked = PredictRequest.parse(bytes_of("predict_next_task"))
    assert asked.project.label_config is not None
    assert asked.project.label_config.schema is not None
    tandem.embedder.categories = asked.project.label_config.schema.class_names
    project = tandem.know(asked.project, *(AnnotatedTask(task=task) for task in asked.tasks))
    tandem.container.embedding.run(project.id, Reports())
    (entry,) = tandem.replay("predict_next_task")["results"]
    assert bool(entry["result"]) is not bool(held_back)
    assert entry["score"] > 0


def without_scores(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in region.items() if key != "score"} for region in entry["result"]]


@pytest.mark.parametrize("name", sorted(set(names_of("/predict")) - set(SUPPORTED)))
def test_predict_for_a_config_that_is_not_supported(tandem: Tandem, name: str) -> None:
    assert tandem.replay(name)["results"] == [{} for _ in REQUESTS[name]["json"]["tasks"]]
    (project,) = tandem.client.get("/api/projects").get_json()
    assert project["label_config"]["supported"] is False
    assert "Tandem learns one <Choices>" in project["label_config"]["problem"]
    assert project["policy"] == {"next": None, "reason": project["label_config"]["problem"]}


@pytest.mark.parametrize("name", names_of("/versions"))
def test_versions(tandem: Tandem, name: str) -> None:
    assert tandem.replay(name) == {"versions": []}
    asked = PredictRequest.parse(bytes_of("predict_next_task"))
    tandem.learn(asked.project)
    (version,) = tandem.replay(name)["versions"]
    assert version.startswith("p5-v1-")
    assert tandem.client.post("/versions", json={}).get_json() == {"versions": [version]}


def test_every_recording_is_replayed() -> None:
    paths = ("/health", "/setup", "/webhook", "/predict", "/versions")
    assert sorted(name for path in paths for name in names_of(path)) == sorted(REQUESTS)


def test_setup_names_the_version_that_predict_answers_with(tandem: Tandem) -> None:
    tandem.learn(PredictRequest.parse(bytes_of("predict_next_task")).project)
    expected = tandem.replay("setup_before_predict")["model_version"]
    assert {entry["model_version"] for entry in tandem.replay("predict_next_task")["results"]} == {expected}


# --- what older versions call, and what people call ------------------------------------------------------------------


def test_training_as_older_versions_ask_for_it(tandem: Tandem) -> None:
    assert tandem.client.get("/is_training").get_json() == {"is_training": False}
    job = tandem.client.post("/train", json={"project": "5.1795460391"}).get_json()["job"]
    answer = tandem.client.post("/job_status", json={"job": job}).get_json()
    assert (answer["job_status"], answer["error"], answer["finished_at"]) == ("queued", None, None)
    with tandem.container.database.transaction() as stores:
        stores.jobs.claim([JobKind.HEAD], "test", tandem.container.clock.now().replace(year=2100), NOON)
    assert tandem.client.get("/is_training").get_json() == {"is_training": True}
    assert tandem.client.post("/job_status", json={"job": "RQ-7"}).status_code == 404


def test_before_the_first_version_setup_and_predict_name_the_same_one(tandem: Tandem) -> None:
    asked = PredictRequest.parse(bytes_of("predict_next_task"))
    assert asked.project.label_config is not None
    assert asked.project.label_config.schema is not None
    first, second, *_ = asked.project.label_config.schema.class_names
    tandem.embedder.categories = (first, second, "something else")
    project = tandem.know(asked.project, *(AnnotatedTask(task=task) for task in asked.tasks))
    tandem.container.embedding.run(project.id, Reports())
    name = tandem.replay("setup_on_add")["model_version"]
    (result,) = tandem.replay("predict_next_task")["results"]
    assert re.fullmatch(rf"p{project.id}-v0-pretrained-[0-9a-f]{{8}}", name)
    assert result["model_version"] == name
    assert tandem.client.get(f"/api/projects/{project.id}").get_json()["pretrained"] == {
        "version": name,
        "classes": {first: [first], second: [second]},
    }


class TestApi:
    @pytest.fixture
    def learned(self, tandem: Tandem) -> Tandem:
        tandem.learn(
            ProjectSnapshot(
                identity=ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_000),
                title="Pets",
                label_config=read_label_config(CONFIG),
            )
        )
        return tandem

    def test_a_project(self, learned: Tandem) -> None:
        project = learned.client.get("/api/projects/5").get_json()
        assert learned.client.get("/api/projects").get_json() == [project]
        assert project["class_names"] == ["cat", "dog"]
        assert (project["title"], project["n_tasks"], project["n_labels"], project["n_embedded"]) == (
            "Pets",
            12,
            12,
            12,
        )
        assert project["active_version"].startswith("p5-v1-")
        assert set(project["metrics"]) == {
            "accuracy",
            "macro_precision",
            "macro_recall",
            "macro_f1",
            "log_loss",
            "brier",
            "ece",
        }
        assert project["jobs"] == {"queued": ["push", "query", "head"], "running": []}
        assert project["policy"]["next"] == "head"

    def test_versions(self, learned: Tandem) -> None:
        (version,) = learned.client.get("/api/projects/5/versions").get_json()
        assert {"version", "kind", "status", "created_at", "n_labels", "n_validation", "metrics", "reason"} <= set(
            version
        )
        assert (version["kind"], version["status"], version["n_labels"]) == ("head", "active", 12)
        assert version["reason"] == "first version of the project"

    def test_a_version_with_all_that_is_known_of_it(self, learned: Tandem) -> None:
        (listed,) = learned.client.get("/api/projects/5/versions").get_json()
        version = learned.client.get(f"/api/projects/5/versions/{listed['version']}").get_json()
        report = version.pop("report")
        assert version == listed | {"problem": None}
        assert report["calibrated"]["n"] == report["uncalibrated"]["n"] == report["conformal"]["n"] == 12
        assert {name: report["calibrated"][name] for name in listed["metrics"]} == listed["metrics"]
        assert [each["class_name"] for each in report["calibrated"]["per_class"]] == ["cat", "dog"]
        assert sum(map(sum, report["calibrated"]["confusion"])) == 12
        assert sum(report["uncalibrated"]["reliability"]["counts"]) == 12
        assert report["conformal"]["alpha"] == 0.1
        assert {"possible_from", "certain_above", "coverage", "mean_size", "share_decided"} <= set(report["conformal"])
        assert report["method"] in report["settings"]["candidates"]
        assert report["settings"]["finetuning"] is None
        assert set(report["settings"]["embedding"]) == {"backbone", "image_views", "device", "runtime"}
        assert len(report["snapshot"]) == len(report["pool"]["sha256"]) == 64
        assert {"python", "numpy"} <= set(report["libraries"])
        assert report["timings_s"]["learn"] > 0

    def test_a_reliability_diagram(self, learned: Tandem) -> None:
        (listed,) = learned.client.get("/api/projects/5/versions").get_json()
        answer = learned.client.get(f"/api/projects/5/versions/{listed['version']}/reliability.svg")
        assert answer.mimetype == "image/svg+xml"
        assert listed["version"] in answer.text

    @pytest.mark.parametrize("path", ["", "/reliability.svg"])
    def test_an_unknown_version(self, learned: Tandem, path: str) -> None:
        answer = learned.client.get(f"/api/projects/5/versions/p5-v9-00000000{path}")
        assert answer.status_code == 404
        assert answer.get_json()["error"]["code"] == "not_found"

    def test_a_version_whose_weights_are_gone_says_so(self, learned: Tandem) -> None:
        (listed,) = learned.client.get("/api/projects/5/versions").get_json()
        learned.container.artifacts.delete(f"versions/p5/{listed['version']}")
        version = learned.client.get(f"/api/projects/5/versions/{listed['version']}").get_json()
        assert version.pop("problem")
        assert version == listed | {"report": None}
        answer = learned.client.get(f"/api/projects/5/versions/{listed['version']}/reliability.svg")
        assert answer.status_code == 404

    def test_suspect_labels(self, learned: Tandem) -> None:
        review = learned.client.get("/api/projects/5/suspects").get_json()
        assert review == {"suspects": [], "n_checked": 12, "agreement": {"n_tasks": 0, "share": None}}
        wrong = [
            make_annotation(task_id, task_id, "cat", updated_at=NOON + timedelta(hours=1))
            for task_id in (100_001, 100_003)
        ]
        second = make_annotation(7, 100_001, "dog", annotator_id=2, ground_truth=True)
        with learned.container.database.transaction() as stores:
            stores.annotations.upsert(5, [*wrong, second])
        review = learned.client.get("/api/projects/5/suspects").get_json()
        (suspect,) = review["suspects"]
        assert 0.5 < suspect.pop("confidence") <= 1
        assert suspect == {"task": 100_003, "given": ["cat"], "suggested": ["dog"]}
        assert review["agreement"] == {"n_tasks": 1, "share": 0}

    def test_no_more_suspects_than_asked_for(self, learned: Tandem) -> None:
        with learned.container.database.transaction() as stores:
            wrong = [
                make_annotation(task_id, task_id, "cat", updated_at=NOON + timedelta(hours=1))
                for task_id in (100_001, 100_003)
            ]
            stores.annotations.upsert(5, wrong)
        assert len(learned.client.get("/api/projects/5/suspects").get_json()["suspects"]) == 2
        assert len(learned.client.get("/api/projects/5/suspects?limit=1").get_json()["suspects"]) == 1

    @pytest.mark.parametrize(("query", "field"), [("limit=0", "limit"), ("limit=all", "limit"), ("top=3", "top")])
    def test_a_query_that_cannot_be_understood(self, learned: Tandem, query: str, field: str) -> None:
        answer = learned.client.get(f"/api/projects/5/suspects?{query}")
        assert answer.status_code == 400
        assert answer.get_json()["error"]["field"] == field

    def test_a_forecast(self, learned: Tandem) -> None:
        with learned.container.database.transaction() as stores:
            stores.versions.add(make_version(2, n_labels=48))
            stores.versions.add(make_version(3, n_labels=24))
            stores.versions.add(make_version(4, n_labels=48))
        forecast = learned.client.get("/api/projects/5/forecast").get_json()
        forecasted = learned.container.review.forecast(5)
        expected = forecasted.expected
        assert 0 < expected.low < expected.gain < expected.high < 1
        assert forecast == {
            "n_labels": 48,
            "accuracy": expected.accuracy,
            "n_more": 50,
            "expected_gain": expected.gain,
            "low": expected.low,
            "high": expected.high,
            "measured_on": {"n_images": forecasted.n_images, "at_random": False},
            "summary": forecasted.sentence,
        }

    def test_the_pool(self, learned: Tandem) -> None:
        report = learned.container.survey.images(5)
        pool = learned.client.get("/api/projects/5/pool").get_json()
        assert pool["duplicates"] == [
            {"tasks": list(group), "open": [task for task in group if task in report.open_tasks]}
            for group in report.duplicates
        ]
        assert pool["outliers"] == []
        assert (pool["n_checked"], pool["n_tasks"]) == (report.n_checked, report.n_tasks)
        assert (pool["n_needless"], pool["summary"]) == (len(report.needless), report.sentence)
        assert report.duplicates
        first = learned.client.get("/api/projects/5/pool?limit=1").get_json()
        assert first["duplicates"] == pool["duplicates"][:1]
        assert first["n_groups"] == len(report.duplicates)
        assert learned.client.get("/api/projects/5/pool?limit=0").status_code == 400

    @pytest.mark.parametrize("view", ["suspects", "forecast"])
    def test_views_of_a_project_without_a_version(self, tandem: Tandem, view: str) -> None:
        answer = tandem.client.get(f"/api/projects/5/{view}")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")
        tandem.know(
            ProjectSnapshot(
                identity=ProjectIdentity(label_studio_id=5, created_stamp=1_700_000_000),
                label_config=read_label_config(CONFIG),
            )
        )
        answer = tandem.client.get(f"/api/projects/5/{view}")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "conflict")
        assert answer.get_json()["error"]["message"] == "project 5 has no version yet: label some more images"

    def test_jobs(self, learned: Tandem) -> None:
        answer = learned.client.post("/api/projects/5/train", json={"kind": "finetune"})
        assert answer.status_code == 202
        job = answer.get_json()
        assert (job["kind"], job["status"]) == ("finetune", "queued")
        assert job["progress"] == {"done": 0, "total": 0, "unit": "", "eta_s": None}
        assert {"created_at", "started_at", "finished_at", "attempts", "reason"} <= set(job)
        assert learned.client.get("/api/projects/5/jobs").get_json()[0] == job
        cancelled = learned.client.delete(f"/api/jobs/{job['id']}").get_json()
        assert cancelled["status"] == "cancelled"
        assert learned.client.post("/api/projects/5/train").get_json()["kind"] == "head"
        assert learned.client.post("/api/projects/5/sync").status_code == 202

    def test_rollback(self, learned: Tandem) -> None:
        (version,) = learned.client.get("/api/projects/5/versions").get_json()
        answer = learned.client.post("/api/projects/5/rollback", json={"version": version["version"]})
        assert answer.status_code == 200
        assert answer.get_json()["reason"] == "rolled back by hand"

    def test_forget(self, learned: Tandem) -> None:
        answer = learned.client.delete("/api/projects/5")
        assert (answer.status_code, answer.data) == (204, b"")
        assert learned.client.get("/api/projects").get_json() == []

    def test_metrics(self, learned: Tandem) -> None:
        answer = learned.client.get("/metrics")
        assert answer.content_type.startswith("text/plain")
        assert 'tandem_labelled_tasks{project="5"} 12.0' in answer.text
        assert 'tandem_active_version_number{project="5"} 1.0' in answer.text
        assert 'tandem_jobs{kind="push",project="5",status="queued"} 1.0' in answer.text


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "field"),
    [
        ("POST", "/setup", b"no json", 400, "invalid_request", None),
        ("POST", "/setup", b"[]", 400, "invalid_request", None),
        ("POST", "/setup", b"{}", 400, "invalid_request", "project"),
        ("POST", "/predict", b'{"project": "5.1"}', 400, "invalid_request", "tasks"),
        ("POST", "/predict", b'{"tasks": []}', 400, "invalid_request", "project"),
        ("POST", "/webhook", b"\xff\xfe", 400, "invalid_request", None),
        ("POST", "/job_status", b"{}", 404, "not_found", None),
        ("GET", "/nowhere", b"", 404, "not_found", None),
        ("GET", "/api/projects/99", b"", 404, "not_found", None),
        ("GET", "/api/projects/99/versions", b"", 404, "not_found", None),
        ("GET", "/api/projects/99/jobs", b"", 404, "not_found", None),
        ("GET", "/api/projects/none", b"", 404, "not_found", None),
        ("POST", "/api/projects/99/train", b"", 404, "not_found", None),
        ("POST", "/api/projects/99/train", b'{"kind": "magic"}', 400, "invalid_request", "kind"),
        ("POST", "/api/projects/99/train", b'{"knd": "head"}', 400, "invalid_request", "knd"),
        ("POST", "/api/projects/99/train", b"[", 400, "invalid_request", None),
        ("POST", "/api/projects/99/rollback", b"{}", 400, "invalid_request", "version"),
        ("POST", "/api/projects/99/rollback", b'{"version": "p9-v1-00000000"}', 404, "not_found", None),
        ("POST", "/api/projects/99/rollback", b'{"version": "../../etc"}', 404, "not_found", None),
        ("DELETE", "/api/jobs/99", b"", 404, "not_found", None),
        ("GET", "/webhook", b"", 405, "method_not_allowed", None),
        ("DELETE", "/api/projects/99", b"", 404, "not_found", None),
        ("DELETE", "/api/projects", b"", 405, "method_not_allowed", None),
    ],
)
def test_errors_say_what_is_wrong(
    tandem: Tandem, method: str, path: str, body: bytes, status: int, code: str, field: str | None
) -> None:
    answer = tandem.client.open(path, method=method, data=body)
    assert answer.status_code == status
    error = answer.get_json()["error"]
    assert set(error) == {"code", "message"} | ({"field"} if field else set())
    assert (error["code"], error.get("field")) == (code, field)
    assert error["message"]
    assert "Traceback" not in answer.text


def test_a_conflict(tandem: Tandem) -> None:
    tandem.replay("config_rating__ANNOTATION_CREATED")
    (project,) = tandem.client.get("/api/projects").get_json()
    answer = tandem.client.post(f"/api/projects/{project['id']}/train")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "conflict")


def test_a_request_too_large(tandem: Tandem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tandem.client.application.config, "MAX_CONTENT_LENGTH", 100)
    answer = tandem.client.post("/predict", data=b" " * 101)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "request_entity_too_large")


def test_a_surprise_never_shows_a_traceback(tandem: Tandem, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise RuntimeError(HIDDEN)

    monkeypatch.setattr(tandem.container.projects, "all", explode)
    answer = tandem.client.get("/api/projects")
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "internal_error"
    assert HIDDEN not in answer.text


def test_a_busy_database_is_worth_another_try(tandem: Tandem, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked() -> None:
        raise backend.errors.StoreUnavailable("the database is locked")

    monkeypatch.setattr(tandem.container.database, "transaction", locked)
    answer = tandem.client.post("/webhook", json=REQUESTS["webhook_START_TRAINING_button"]["json"])
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "store_unavailable")


def leaves(kind: type[TandemError]) -> list[type[TandemError]]:
    return [leaf for child in kind.__subclasses__() for leaf in leaves(child)] or [kind]


@pytest.mark.parametrize("kind", leaves(TandemError))
def test_every_error_has_a_status(tandem: Tandem, monkeypatch: pytest.MonkeyPatch, kind: type[TandemError]) -> None:
    more = {backend.errors.LabelStudioRejected: {"status": 400}, backend.errors.RateLimited: {"retry_after_s": 9}}
    error = kind("no", **more.get(kind, {}))

    def fail() -> None:
        raise error

    monkeypatch.setattr(tandem.container.projects, "all", fail)
    answer = tandem.client.get("/api/projects")
    assert answer.status_code == next(status for each, status in STATUS_OF.items() if issubclass(kind, each))
    assert answer.get_json()["error"]["message"] == "no"


# --- who may come in --------------------------------------------------------------------------------

BASIC = {"Authorization": "Basic " + base64.b64encode(f"tandem:{HIDDEN}".encode()).decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"tandem:guess").decode()}
GUARDED = [
    ("GET", "/versions"),
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("GET", "/metrics"),
    ("GET", "/api/projects"),
]


class TestBasicAuth:
    @pytest.fixture
    def guarded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tandem:
        return Tandem(folder, monkeypatch, basic_auth_user="tandem", basic_auth_pass=HIDDEN)

    @pytest.mark.parametrize("path", ["/", "/health"])
    def test_health_is_open(self, guarded: Tandem, path: str) -> None:
        assert guarded.client.get(path).status_code == 200

    def test_everything_else_is_closed_to_strangers(self, guarded: Tandem) -> None:
        for rule in guarded.client.application.url_map.iter_rules():
            if rule.endpoint == "static" or rule.rule in ("/", "/health", "/ready"):
                continue
            path = re.sub("<[^>]*>", "5", rule.rule)
            method = next(iter(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})))
            answer = guarded.client.open(path, method=method)
            assert answer.status_code == 401, path
            assert answer.get_json()["error"]["code"] == "unauthorized"

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    def test_credentials_open_and_wrong_ones_do_not(self, guarded: Tandem, method: str, path: str) -> None:
        refused = guarded.client.open(path, method=method, headers=WRONG)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic")
        assert guarded.client.open(path, method=method, headers=BASIC).status_code in (200, 400)

    @pytest.mark.parametrize("header", ["Basic ", "Basic !!", "Bearer abc", "Basic " + base64.b64encode(b"x").decode()])
    def test_malformed_credentials_are_no_crash(self, guarded: Tandem, header: str) -> None:
        assert guarded.client.get("/metrics", headers={"Authorization": header}).status_code == 401

    def test_the_webhook_takes_credentials_or_its_own_secret(self, guarded: Tandem) -> None:
        """Label Studio sends START_TRAINING with the credentials, and every other event without them."""
        body = REQUESTS["basicauth_webhook_ANNOTATION_CREATED_has_no_auth"]["json"]
        secret = guarded.container.webhook_secret
        assert secret
        for headers, status in (
            ({}, 401),
            (WRONG, 401),
            ({"X-Webhook-Secret": "guess"}, 401),
            ({"X-Webhook-Secret": "gu\u00e9ss"}, 401),
            ({"X-Webhook-Secret": secret}, 200),
            (BASIC, 200),
        ):
            assert guarded.client.post("/webhook", json=body, headers=headers).status_code == status
        assert guarded.client.get("/metrics", headers={"X-Webhook-Secret": secret}).status_code == 401

    def test_the_webhook_secret_outlives_a_restart_and_is_private(
        self, guarded: Tandem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        again = Tandem(guarded.folder, monkeypatch, basic_auth_user="tandem", basic_auth_pass=HIDDEN)
        assert again.container.webhook_secret == guarded.container.webhook_secret
        assert (guarded.folder / "webhook_secret").stat().st_mode & 0o077 == 0


def test_a_webhook_secret_guards_the_webhook_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tandem = Tandem(folder, monkeypatch, webhook_secret=HIDDEN)
    body = REQUESTS["manual_webhook_custom_headers_ANNOTATION_CREATED"]["json"]
    assert tandem.client.post("/webhook", json=body).status_code == 401
    assert tandem.client.post("/webhook", json=body, headers={"X-Webhook-Secret": HIDDEN}).status_code == 200
    assert tandem.client.get("/api/projects").status_code == 200


def test_without_settings_everything_is_open(tandem: Tandem) -> None:
    assert tandem.container.webhook_secret is None
    assert tandem.client.get("/api/projects").status_code == 200


# --- what the process loads --------------------------------------------------------------------------------


WITHOUT_TORCH = """
import json, sys
from backend.app import create_app
client = create_app().test_client()
setup = client.post("/setup", json=json.loads(sys.argv[1])).get_json()
webhook = client.post("/webhook", json=json.loads(sys.argv[2])).get_json()
predict = client.post("/predict", json=json.loads(sys.argv[3])).get_json()
views = [client.get(f"/api/projects/5/{name}").status_code for name in ("suspects", "forecast", "pool")]
heavy = [name for name in ("torch", "torchvision", "sklearn", "label_studio_sdk") if name in sys.modules]
print(json.dumps({"setup": setup, "webhook": webhook, "predict": predict, "views": views, "heavy": heavy}))
"""


def test_answers_need_no_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
    world = World(folder, database)
    world.learn(pets(8))
    active = world.learn(pets(12))
    database.close()
    monkeypatch.setenv("MODEL_DIR", str(folder))
    bodies = [
        {"project": "5.1700000000", "schema": CONFIG},
        REQUESTS["webhook_START_TRAINING_button"]["json"],
        {
            "project": "5.1700000000",
            "label_config": CONFIG,
            "tasks": [{"id": 2, "data": {"image": make_task(2, "cat").image_url}}],
        },
    ]
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(json.dumps, bodies)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = json.loads(process.stdout)
    assert said["heavy"] == []
    assert said["views"] == [200, 200, 200]
    assert said["setup"] == {"model_version": active.name}
    assert said["webhook"]["status"] == "accepted"
    (entry,) = said["predict"]["results"]
    assert entry["result"][0]["value"] == {"choices": ["cat"]}
