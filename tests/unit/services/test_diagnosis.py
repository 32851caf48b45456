"""What the doctor finds, and what it says to do: one fault at a time."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from backend.adapters.database import SqlDatabase
from backend.domain import JobKind, JobStatus, LabelConfig, ProjectSeen, Sampling
from backend.errors import (
    ConfigurationError,
    ImageForbidden,
    LabelStudioRejected,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
    NotFound,
    StoreUnavailable,
)
from backend.label_studio.credentials import LEGACY_SWITCHED_OFF, PERSONAL_REFUSED
from backend.ports import ConnectedBackend, DiskSpace, EmbedderState, GpuMemory, UrlVerdict
from backend.services.diagnosis.examination import Examination
from backend.services.diagnosis.findings import Check, Finding, Installation, Status
from backend.services.diagnosis.label_studio import LabelStudioChecks
from backend.services.diagnosis.machine import GIB, MachineChecks
from backend.services.diagnosis.projects import ProjectChecks
from tests.factories import make_identity
from tests.fakes import FakeHealth, FakeInspector, make_webhook
from tests.world import PROJECT, PUBLIC_URL, World, pets

OWN_URL = "http://127.0.0.1:9090"
LABEL_STUDIO_URL = "http://label-studio.test:8080"


class FakeMachine:
    """A machine on which all is well, until a test says otherwise."""

    def __init__(self) -> None:
        self.not_writable: ConfigurationError | None = None
        self.free_bytes = 100 * GIB
        self.gpu_memory: list[GpuMemory] = []
        self.embedder_state = EmbedderState.UP

    def check_writable(self) -> None:
        if self.not_writable:
            raise self.not_writable

    def disk(self) -> DiskSpace:
        return DiskSpace(free_bytes=self.free_bytes, total_bytes=200 * GIB)

    def gpus(self) -> list[GpuMemory]:
        return self.gpu_memory

    def embedder(self) -> EmbedderState:
        return self.embedder_state


class Patient:
    """An installation, perhaps with nothing wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = FakeMachine()
        self.inspector: FakeInspector | None = FakeInspector()
        self.health = FakeHealth()
        self.load_backbone: Callable[[], str] = lambda: ""
        self.installation = Installation(
            tandem_version="0.2.0",
            torch_version="2.15.0",
            label_studio_url=LABEL_STUDIO_URL,
            has_api_key=True,
            public_url=PUBLIC_URL,
            own_url=OWN_URL,
            uses_basic_auth=False,
            device="auto",
            backbone="mobilenet_v3_large",
            weights="auto",
            pushes_predictions=True,
            in_container=False,
        )
        self.inspector.connected = [ConnectedBackend(url=PUBLIC_URL, title="Tandem", is_connected=True)]

    def set(self, **changes: object) -> None:
        self.installation = replace(self.installation, **changes)  # type: ignore[arg-type]

    def examine(self, *, may_write: bool = True) -> list[Finding]:
        world, clock = self.world, self.world.clock
        if self.inspector:
            self.inspector.time = self.inspector.time and clock.now()
        examination = Examination(
            MachineChecks(
                self.installation,
                world.database,
                world.artifacts,
                self.machine,
                world.embedder,
                lambda: self.load_backbone(),
                self.health,
                clock,
            ),
            LabelStudioChecks(self.installation, self.inspector, self.health, clock),
            ProjectChecks(
                self.installation,
                world.database,
                world.gateway if self.inspector else None,
                self.inspector,
                world.images,
                clock,
            ),
        )
        return list(examination.run(may_write=may_write))

    def ailments(self, **options: bool) -> dict[Check, Finding]:
        """What is not ok."""
        return {each.check: each for each in self.examine(**options) if each.status is not Status.OK}

    def only(self, check: Check, **options: bool) -> Finding:
        """The one finding that is not ok."""
        (finding,) = self.ailments(**options).values()
        assert finding.check is check
        return finding


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    """A version that is pushed and shown, and an event a moment ago: made once, copied for each test."""
    folder = tmp_path_factory.mktemp("healthy")
    shutil.copy(empty_database, folder / "tandem.sqlite3")
    world = World(folder, SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}"))
    world.learn(pets(12))
    world.see_tasks(pets(4, start=20))
    world.embed()
    world.label_studio.webhooks = [make_webhook(f"{PUBLIC_URL}/webhook")]
    world.label_studio.sampling = Sampling.UNCERTAINTY
    world.push()
    world.finish_jobs()
    world.database.close()
    return world


@pytest.fixture
def patient(healthy: World, tmp_path: Path) -> Iterator[Patient]:
    folder = tmp_path / "world"
    shutil.copytree(healthy.folder, folder)
    database = SqlDatabase(f"sqlite:///{folder / 'tandem.sqlite3'}")
    world = World(folder, database)
    world.label_studio = copy.deepcopy(healthy.label_studio)
    world.gateway.projects[PROJECT] = world.label_studio
    world.clock.forward(60)
    yield Patient(world)
    database.close()


def test_nothing_is_wrong(patient: Patient) -> None:
    findings = patient.examine()
    assert {finding.check for finding in findings} == set(Check) - {Check.SETTINGS}
    assert {finding.status for finding in findings} == {Status.OK}
    assert all(finding.found and not finding.remedy for finding in findings)
    of_the_project = {finding.check for finding in findings if finding.project == PROJECT}
    assert of_the_project == {
        *(Check.PROJECT, Check.CONNECTION, Check.WEBHOOK, Check.EVENTS, Check.LABEL_CONFIG),
        *(Check.IMAGES, Check.JOBS, Check.MODEL_VERSION, Check.SAMPLING),
    }


def test_each_fault_has_a_remedy_of_one_line(patient: Patient) -> None:
    patient.machine.free_bytes = 0
    patient.machine.embedder_state = EmbedderState.DOWN
    patient.set(public_url=None, device="cuda")
    patient.world.label_studio.webhooks = []
    ailing = [each for each in patient.examine() if each.status in (Status.WARNING, Status.FAILED)]
    assert len(ailing) >= 5
    assert all(each.remedy and "\n" not in each.remedy for each in ailing)


# --- the machine -------------------------------------------------------------------------------------------------


class TestMachine:
    def test_a_folder_that_is_not_ours(self, patient: Patient) -> None:
        patient.machine.not_writable = ConfigurationError("MODEL_DIR='/data' cannot be written to (Permission denied)")
        finding = patient.only(Check.MODEL_DIR)
        assert finding.status is Status.FAILED
        assert "chown" in finding.remedy

    @pytest.mark.parametrize(("free_bytes", "status"), [(GIB // 2, Status.FAILED), (3 * GIB, Status.WARNING)])
    def test_a_disk_that_is_full_or_nearly(self, patient: Patient, free_bytes: int, status: Status) -> None:
        patient.machine.free_bytes = free_bytes
        assert patient.only(Check.DISK).status is status

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (StoreUnavailable("the database cannot be used now"), Status.FAILED),
            (ConfigurationError("its schema is at revision '9999'"), Status.FAILED),
            (NotFound("there is no schema yet"), Status.WARNING),
        ],
    )
    def test_a_database_that_cannot_be_used(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: Status
    ) -> None:
        def raise_error() -> None:
            raise error

        monkeypatch.setattr(patient.world.database, "check_schema", raise_error)
        ailments = patient.ailments()
        assert ailments[Check.DATABASE].status is status
        assert ailments[Check.DATABASE].found == str(error)
        assert {ailments[check].status for check in (Check.WORKER, Check.PROJECTS)} == {Status.SKIPPED}

    def test_a_store_for_versions_that_cannot_be_written(self, patient: Patient, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        patient.world.artifacts = type(patient.world.artifacts)(tmp_path / "file")
        assert patient.only(Check.ARTIFACTS).status is Status.FAILED

    def test_a_gpu_that_is_asked_for_and_not_there(self, patient: Patient) -> None:
        patient.set(device="cuda")
        assert patient.only(Check.GPU).status is Status.FAILED

    @pytest.mark.parametrize(
        ("changes", "status", "remedy"),
        [
            ({}, Status.OK, ""),
            ({"device": "cpu"}, Status.WARNING, "DEVICE=auto"),
            ({"torch_version": "2.15.0+cpu"}, Status.WARNING, "PyTorch with CUDA"),
            ({"torch_version": "2.15.0+cpu", "device": "cuda"}, Status.FAILED, "PyTorch with CUDA"),
        ],
    )
    def test_a_gpu_that_is_there(self, patient: Patient, changes: dict[str, str], status: Status, remedy: str) -> None:
        patient.machine.gpu_memory = [GpuMemory(index=0, used_bytes=0, total_bytes=80 * GIB)]
        patient.set(**changes)
        (finding,) = (each for each in patient.examine() if each.check is Check.GPU)
        assert finding.status is status
        assert "80 GiB" in finding.found
        assert remedy in finding.remedy

    def test_an_embedding_process_that_is_down_or_starting(self, patient: Patient) -> None:
        patient.machine.embedder_state = EmbedderState.STARTING
        assert "wait" in patient.only(Check.EMBEDDER).remedy
        patient.machine.embedder_state = EmbedderState.DOWN
        assert "tandem serve" in patient.only(Check.EMBEDDER).remedy

    def test_weights_that_could_not_be_had(self, patient: Patient) -> None:
        patient.world.embedder.note = "untrained network, features are poor: the weights could not be downloaded"
        finding = patient.only(Check.WEIGHTS)
        assert finding.status is Status.FAILED
        assert "WEIGHTS" in finding.remedy

    def test_no_weights_are_asked_for(self, patient: Patient) -> None:
        patient.set(weights="none")
        assert patient.only(Check.WEIGHTS).status is Status.WARNING

    def test_weights_are_loaded_here_where_no_embedding_process_runs(self, patient: Patient) -> None:
        patient.world.embedder.down = True
        assert patient.ailments() == {}

        def fail() -> str:
            raise ValueError("/weights.pt is not a state dict that torch can read safely")

        patient.load_backbone = fail
        assert patient.only(Check.WEIGHTS).found.startswith("/weights.pt is not a state dict")

    def test_no_web_server(self, patient: Patient) -> None:
        patient.health.problems[OWN_URL] = "it cannot be reached"
        assert patient.only(Check.WEB_SERVER).status is Status.WARNING

    def test_jobs_that_nobody_takes(self, patient: Patient) -> None:
        patient.world.label({21: "cat"})
        assert patient.ailments() == {}
        patient.world.clock.forward(300)
        finding = patient.ailments()[Check.WORKER]
        assert finding.status is Status.FAILED
        assert "no worker" in finding.found

    def test_a_job_whose_worker_died(self, patient: Patient) -> None:
        world = patient.world
        world.label({21: "cat"})
        now = world.clock.forward(5)
        with world.database.transaction() as stores:
            assert stores.jobs.claim([JobKind.HEAD], "dead", now, now + timedelta(seconds=30))
        assert "1 jobs run" in next(each.found for each in patient.examine() if each.check is Check.WORKER)
        world.clock.forward(60)
        assert Check.WORKER in patient.ailments()


# --- Label Studio ------------------------------------------------------------------------------------------------


class TestLabelStudio:
    def test_it_does_not_answer(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.error = LabelStudioUnavailable("Label Studio at http://label-studio.test cannot be reached")
        ailments = patient.ailments()
        assert ailments.pop(Check.LABEL_STUDIO).status is Status.FAILED
        assert {each.status for each in ailments.values()} == {Status.SKIPPED}
        assert Check.CONNECTION in ailments
        assert "project" not in patient.world.gateway.calls

    def test_nothing_is_set(self, patient: Patient) -> None:
        patient.inspector = None
        patient.set(label_studio_url=None, has_api_key=False, public_url=None)
        ailments = patient.ailments()
        failures = {check for check, each in ailments.items() if each.status is Status.FAILED}
        assert failures == {Check.LABEL_STUDIO_URL, Check.PUBLIC_URL}
        assert ailments[Check.CONNECTION].status is Status.SKIPPED

    def test_no_api_key(self, patient: Patient) -> None:
        patient.inspector = None
        patient.set(has_api_key=False)
        finding = patient.ailments()[Check.API_KEY]
        assert finding.status is Status.FAILED
        assert "Personal Access Token" in finding.remedy

    @pytest.mark.parametrize("refusal", [LEGACY_SWITCHED_OFF, PERSONAL_REFUSED])
    def test_an_api_key_of_the_wrong_kind_or_that_is_refused(self, patient: Patient, refusal: str) -> None:
        assert patient.inspector
        patient.inspector.key_error = LabelStudioUnauthorized(refusal)
        ailments = patient.ailments()
        finding = ailments.pop(Check.API_KEY)
        assert finding.status is Status.FAILED
        assert {each.status for each in ailments.values()} == {Status.SKIPPED}
        assert f"{finding.found}. {finding.remedy}" == refusal
        assert "ersonal" in finding.remedy

    def test_the_kind_of_key_and_whose_it_is(self, patient: Patient) -> None:
        found = next(each.found for each in patient.examine() if each.check is Check.API_KEY)
        assert found == "the personal access token of ops@example.com is accepted"

    def test_another_release(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.version = "1.20.0"
        finding = patient.only(Check.VERSIONS)
        assert "Tandem 0.2.0, Label Studio 1.20.0" in finding.found
        patient.inspector.version = "1.230.0"
        assert patient.only(Check.VERSIONS).status is Status.WARNING

    @pytest.mark.parametrize(("ahead_s", "words"), [(90, "90 s ahead of"), (-3600, "3600 s behind")])
    def test_clocks_that_differ(self, patient: Patient, ahead_s: float, words: str) -> None:
        assert patient.inspector
        server = patient.inspector.server()
        other = replace(server, time=patient.world.clock.now() - timedelta(seconds=ahead_s))
        patient.inspector.server = lambda: other  # type: ignore[method-assign]
        assert words in patient.only(Check.CLOCK).found

    def test_a_server_that_does_not_tell_the_time(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.time = None
        assert patient.only(Check.CLOCK).status is Status.SKIPPED

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
    def test_localhost_in_a_container(self, patient: Patient, host: str) -> None:
        patient.set(label_studio_url=f"http://{host}:8080", in_container=True)
        assert patient.ailments() == {}
        assert patient.inspector
        patient.inspector.error = LabelStudioUnavailable("Label Studio cannot be reached")
        assert "host.docker.internal" in patient.ailments()[Check.LABEL_STUDIO].remedy
        patient.set(in_container=False)
        assert "host.docker.internal" not in patient.ailments()[Check.LABEL_STUDIO].remedy

    def test_no_tandem_at_the_public_url(self, patient: Patient) -> None:
        patient.health.problems[PUBLIC_URL] = "it cannot be reached"
        assert patient.only(Check.PUBLIC_URL).status is Status.WARNING

    @pytest.mark.parametrize(
        ("public_url", "label_studio_url", "status"),
        [
            ("http://tandem:9090", LABEL_STUDIO_URL, Status.FAILED),
            ("http://tandem.internal:9090", LABEL_STUDIO_URL, Status.OK),
            ("http://localhost:9090", LABEL_STUDIO_URL, Status.FAILED),
            ("http://127.0.0.1:9090", "http://127.0.0.1:8080", Status.OK),
            ("http://[fd00::7]:9090", LABEL_STUDIO_URL, Status.OK),
        ],
    )
    def test_how_label_studio_is_to_reach_us(
        self, patient: Patient, public_url: str, label_studio_url: str, status: Status
    ) -> None:
        patient.set(public_url=public_url, label_studio_url=label_studio_url)
        (finding,) = (each for each in patient.examine() if each.check is Check.PUBLIC_URL)
        assert finding.status is status

    @pytest.mark.parametrize(
        ("verdict", "remedy"),
        [
            (UrlVerdict.BLOCKED, "SSRF_PROTECTION_ENABLED=false"),
            (UrlVerdict.MALFORMED, "with a dot"),
            (UrlVerdict.UNRESOLVED, "can resolve"),
        ],
    )
    def test_urls_that_label_studio_refuses(self, patient: Patient, verdict: UrlVerdict, remedy: str) -> None:
        assert patient.inspector
        patient.inspector.webhook_verdict = patient.inspector.backend_verdict = verdict
        ailments = patient.ailments()
        assert set(ailments) == {Check.BACKEND_ADDRESS, Check.WEBHOOK_ADDRESS}
        for finding in ailments.values():
            assert finding.status is Status.FAILED
            assert remedy in finding.remedy


# --- projects ----------------------------------------------------------------------------------------------------


class TestProjects:
    def test_none_is_known(self, patient: Patient, second_world: World) -> None:
        patient.world = second_world
        assert patient.only(Check.PROJECTS).status is Status.SKIPPED

    def test_one_that_is_gone_in_label_studio(self, patient: Patient) -> None:
        del patient.world.gateway.projects[PROJECT]
        found = patient.only(Check.PROJECT)
        assert found.status is Status.FAILED
        assert "tandem forget 5" in found.remedy

    def test_one_that_was_made_anew(self, patient: Patient) -> None:
        patient.world.label_studio.identity = make_identity(PROJECT, 1_800_000_000)
        found = patient.only(Check.PROJECT)
        assert found.status is Status.WARNING
        assert "tandem forget 5" in found.remedy

    def test_not_connected(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.connected = []
        assert "Connect Model" in patient.only(Check.CONNECTION).remedy

    def test_connected_by_another_url(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.connected = [ConnectedBackend(url="http://10.0.0.7:9090", title="T", is_connected=True)]
        finding = patient.only(Check.CONNECTION)
        assert finding.status is Status.WARNING
        assert "http://10.0.0.7:9090" in finding.found

    def test_label_studio_does_not_reach_us(self, patient: Patient) -> None:
        assert patient.inspector
        patient.inspector.connected = [
            ConnectedBackend(url=f"{PUBLIC_URL}/", title="T", is_connected=False, problem="Disconnected")
        ]
        assert "Basic auth" not in patient.only(Check.CONNECTION).remedy
        patient.set(uses_basic_auth=True)
        finding = patient.only(Check.CONNECTION)
        assert finding.status is Status.FAILED
        assert "Basic auth" in finding.remedy

    def test_no_webhook(self, patient: Patient) -> None:
        patient.world.label_studio.webhooks = [make_webhook("http://elsewhere.test/webhook")]
        finding = patient.only(Check.WEBHOOK)
        assert finding.status is Status.FAILED
        assert "tandem sync 5" in finding.remedy

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"is_active": False}, "is not active"),
            ({"sends_payload": False}, "sends no payload"),
            ({"all_actions": False}, "leaves out some actions"),
            ({"has_our_secret": False}, "does not carry our secret"),
        ],
    )
    def test_a_wrong_webhook(self, patient: Patient, changes: dict[str, bool], words: str) -> None:
        (hook,) = patient.world.label_studio.webhooks
        patient.world.label_studio.webhooks = [replace(hook, **changes)]  # type: ignore[arg-type]
        assert words in patient.only(Check.WEBHOOK).found

    def test_webhooks_that_may_not_be_listed(self, patient: Patient) -> None:
        patient.world.gateway.hidden_webhooks = LabelStudioRejected("403", status=403)
        assert patient.only(Check.WEBHOOK).status is Status.SKIPPED

    def test_an_event_that_label_studio_is_made_to_send(self, patient: Patient) -> None:
        world = patient.world
        world.clock.forward(86_400)
        assert patient.inspector

        def send(_project: int) -> None:
            world.ingestion.handle(ProjectSeen(project=world.snapshot))

        patient.inspector.on_event = send
        assert Check.EVENTS not in patient.ailments()

    def test_events_that_never_come(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backend.services.diagnosis.projects.EVENT_TIMEOUT_S", 0.0)
        patient.world.clock.forward(86_400)
        finding = patient.ailments()[Check.EVENTS]
        assert finding.status is Status.FAILED
        assert "2026-05-17" in finding.found

    def test_reading_only_makes_no_event(self, patient: Patient) -> None:
        patient.world.clock.forward(86_400)
        assert patient.inspector
        patient.inspector.event_error = LabelStudioRejected("it was asked to send one", status=400)
        assert patient.ailments(may_write=False)[Check.EVENTS].status is Status.WARNING

    def test_a_label_config_that_cannot_be_learned(self, patient: Patient) -> None:
        patient.world.configure(LabelConfig(problem="<Rating> is not a <Choices>"))
        finding = patient.ailments()[Check.LABEL_CONFIG]
        assert (finding.status, finding.found) == (Status.FAILED, "<Rating> is not a <Choices>")

    def test_an_image_that_cannot_be_fetched(self, patient: Patient) -> None:
        for url in {task.image_url for task in patient.world.tasks.values() if task.image_url}:
            patient.world.images.contents[url] = ImageForbidden("nas.local is not at a public address")
        finding = patient.only(Check.IMAGES)
        assert finding.status is Status.FAILED
        assert "IMAGE_HOSTS" in finding.remedy

    def test_images_that_could_not_be_used(self, patient: Patient) -> None:
        world = patient.world
        world.images.contents[world.see_tasks({31: "cat"})[0].image_url or ""] = b"broken"
        world.embed()
        finding = patient.ailments()[Check.IMAGES]
        assert finding.status is Status.WARNING
        assert "1 of 17 images cannot be used; task 31: not an image" in finding.found

    def test_a_job_that_failed(self, patient: Patient) -> None:
        world = patient.world
        with world.database.transaction() as stores:
            now = world.clock.now()
            stores.jobs.enqueue(PROJECT, JobKind.FINETUNE, now, now)
            job = stores.jobs.claim([JobKind.FINETUNE], "test", now, now + timedelta(seconds=30))
            assert job
            stores.jobs.finish(job.id, "test", JobStatus.FAILED, "out of memory", now)
        finding = patient.only(Check.JOBS)
        assert finding.status is Status.FAILED
        assert finding.found == "the last finetune job failed: out of memory"

    def test_a_job_that_is_tried_again(self, patient: Patient) -> None:
        world = patient.world
        with world.database.transaction() as stores:
            now = world.clock.now()
            stores.jobs.enqueue(PROJECT, JobKind.SYNC, now, now)
            job = stores.jobs.claim([JobKind.SYNC], "test", now, now + timedelta(seconds=30))
            assert job
            stores.jobs.requeue(job.id, "test", now + timedelta(seconds=9), "Label Studio cannot be reached")
        assert "Label Studio cannot be reached" in patient.only(Check.JOBS).found

    @pytest.mark.parametrize(
        ("model_version", "changes", "words"),
        [
            ("Tandem", {"pushes_predictions": False}, "PUSH_PREDICTIONS=true"),
            ("Tandem", {}, "choose the newest version"),
            ("", {}, "if they are wanted"),
        ],
    )
    def test_scores_that_label_studio_does_not_look_at(
        self, patient: Patient, model_version: str, changes: dict[str, bool], words: str
    ) -> None:
        patient.world.label_studio.model_version = model_version
        patient.set(**changes)
        finding = patient.only(Check.MODEL_VERSION)
        assert finding.status is Status.WARNING
        assert words in finding.remedy

    def test_a_version_that_is_not_pushed_yet(self, patient: Patient) -> None:
        patient.world.learn(pets(14))
        assert "tandem sync 5" in patient.ailments()[Check.MODEL_VERSION].remedy

    def test_a_label_stream_that_goes_by_no_score(self, patient: Patient) -> None:
        patient.world.label_studio.sampling = Sampling.UNIFORM
        assert "Label next" in patient.only(Check.SAMPLING).remedy

    def test_before_the_first_version(self, patient: Patient, second_world: World) -> None:
        second_world.see_tasks(pets(4))
        second_world.finish_jobs()
        second_world.label_studio.webhooks = [make_webhook(f"{PUBLIC_URL}/webhook")]
        patient.world = second_world
        ailments = patient.ailments()
        assert set(ailments) == {Check.MODEL_VERSION, Check.SAMPLING}
        assert {each.status for each in ailments.values()} == {Status.SKIPPED}
