"""Small stand-ins for ports, for unit tests only."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.domain import (
    AnnotatedTask,
    Annotation,
    Job,
    LabelConfig,
    LabelSchema,
    Progress,
    ProjectIdentity,
    ProjectSnapshot,
    Sampling,
    Suggestion,
    Task,
    TaskView,
    Webhook,
)
from backend.errors import EmbedderUnavailable, ImageError, ImageNotFound, LabelStudioError, LabelStudioRejected
from backend.ports import (
    CachedImage,
    ConnectedBackend,
    EmbedderBackbone,
    Embedding,
    LabelStudioServer,
    ReportProgress,
    UrlVerdict,
)
from model.logits import LinearMap
from model.opinion import PretrainedLayers
from model.reports import EmbeddingSettings
from tests.factories import BASE_DIGEST, NOON


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def forward(self, seconds: float) -> datetime:
        self._now += timedelta(seconds=seconds)
        return self._now


class FakeImages:
    """Images by address: bytes, or the error that fetching them ends with.

    An address like ``…/cat-7.png`` that nobody set is the seventh picture of a cat.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.contents: dict[str, bytes | ImageError] = {}
        self.fetched: list[str] = []
        self.timeouts_s: list[float] = []
        self._lock = threading.Lock()

    def fetch(self, image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:
        with self._lock:
            self.fetched.append(image_url)
            self.timeouts_s.append(timeout_s)
        content = self.contents.get(image_url, Path(image_url).stem.replace("-", " ").encode())
        if isinstance(content, ImageError):
            raise content
        if not image_url:
            raise ImageNotFound(f"task {label_studio_task_id} names no image")
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / digest
        with self._lock:
            if not path.exists():
                path.write_bytes(content)
        return CachedImage(digest=digest, path=path)

    def cached(self, digest: str) -> CachedImage | None:
        path = self._folder / digest
        return CachedImage(digest=digest, path=path) if path.is_file() else None


class FakeEmbedder:
    """Features from a file's content, ``b"<class> <number>"``: near each other within a class.

    A content that begins with ``broken`` cannot be read; nothing can while ``down``. The pretrained classifier sees
    which of its ``categories`` an image is of, and one of them in images of any other class. ``waits`` keeps how urgent
    each call to ``embed`` was, and how long it would have waited.
    """

    BLOCK_SIZES = (4, 12)

    def __init__(self, digest: str = BASE_DIGEST, categories: tuple[str, ...] = ()) -> None:
        self.digest = digest
        self.categories = categories
        self.note = ""
        self.finetuned: set[str] = set()
        self.down = False
        self.embedded: list[Path] = []
        self.waits: list[tuple[bool, float | None]] = []
        self.before_embedding: Callable[[], None] = lambda: None

    def base(self) -> EmbedderBackbone:
        self._check()
        return EmbedderBackbone(digest=self.digest, categories=self.categories, note=self.note)

    def settings(self, backbone_digest: str) -> EmbeddingSettings:
        self._check()
        if backbone_digest != self.digest and backbone_digest not in self.finetuned:
            raise EmbedderUnavailable(f"backbone {backbone_digest[:8]} is not run at the moment")
        return EmbeddingSettings(backbone="resnet18", image_views=1, device="cpu", runtime="a fake")

    def embed(
        self,
        paths: Sequence[Path],
        *,
        backbone_digest: str | None = None,
        urgent: bool = False,
        timeout_s: float | None = None,
    ) -> Embedding:
        self.waits.append((urgent, timeout_s))
        self._check()
        digest = backbone_digest or self.digest
        if digest != self.digest and digest not in self.finetuned:
            raise EmbedderUnavailable(f"no artifact backbones/{digest}")
        self.before_embedding()
        self.embedded += paths
        contents = [path.read_bytes() for path in paths]
        problems = {i: "not an image" for i, content in enumerate(contents) if content.startswith(b"broken")}
        rows = [self.features(content, digest) for i, content in enumerate(contents) if i not in problems]
        return Embedding(
            backbone_digest=digest,
            block_sizes=self.BLOCK_SIZES,
            features=np.array(rows, dtype=np.float16).reshape(-1, sum(self.BLOCK_SIZES)),
            problems=problems,
        )

    def classify(
        self, features: NDArray[np.float16], groups: Sequence[Sequence[str]], *, backbone_digest: str
    ) -> NDArray[np.float32]:
        self._check()
        if backbone_digest != self.digest or not self.categories:
            raise EmbedderUnavailable(f"the embedder has no classifier for backbone {backbone_digest[:8]}")
        unknown = {category for group in groups for category in group} - set(self.categories)
        if unknown:
            raise EmbedderUnavailable(f"the classifier of the embedder has no category {unknown}")
        centres = [self._centre(category.encode(), backbone_digest) for category in self.categories]
        exponentials = np.exp(features.astype(np.float64) @ np.array(centres).T / 4)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        masks = [[category in group for category in self.categories] for group in groups]
        others = [not any(column) for column in zip(*masks, strict=True)] if masks else [True] * len(self.categories)
        sums = [probabilities[:, mask].sum(axis=1) for mask in masks]
        return np.stack([*sums, probabilities[:, others].max(axis=1, initial=0)], axis=1).astype(np.float32)

    def layers(self) -> PretrainedLayers:
        """What ``classify`` computes with."""
        centres = np.array([self._centre(category.encode(), self.digest) for category in self.categories], np.float32)
        only = LinearMap(weight=centres.T / 4, bias=np.zeros(len(centres), np.float32))
        return PretrainedLayers(layers=(only,), categories=self.categories)

    def features(self, content: bytes, digest: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return 2 * self._centre(content.split(b" ")[0], digest) + _direction(content, sum(self.BLOCK_SIZES)) / 2

    def _centre(self, name: bytes, digest: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return _direction(name + digest.encode(), sum(self.BLOCK_SIZES))

    def _check(self) -> None:
        if self.down:
            raise EmbedderUnavailable("the embedding process is not up yet: try again shortly")


def _direction(seed: bytes, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")).standard_normal(n)


@dataclass(kw_only=True)
class FakeProject:
    """A project of the in-memory Label Studio."""

    identity: ProjectIdentity
    title: str
    label_config: LabelConfig
    model_version: str | None = "Tandem"
    tasks: dict[int, Task] = field(default_factory=dict)
    annotations: dict[int, Annotation] = field(default_factory=dict)
    webhooks: list[Webhook] = field(default_factory=list)
    predictions: list[Suggestion] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    views: list[TaskView] = field(default_factory=list)
    least_sure_first: dict[str, bool] = field(default_factory=dict)
    sampling: Sampling = Sampling.SEQUENTIAL


class FakeGateway:
    """An in-memory Label Studio, with its habit of clearing the pointer to a version whose predictions are deleted.

    ``error`` is what every call raises; ``no_webhooks`` what making or repairing one raises; ``hidden_webhooks`` what
    listing them raises.
    """

    PAGE_SIZE = 3
    base_url = "http://label-studio.test"

    def __init__(self) -> None:
        self.projects: dict[int, FakeProject] = {}
        self.error: LabelStudioError | None = None
        self.no_webhooks: LabelStudioError | None = None
        self.hidden_webhooks: LabelStudioError | None = None
        self.calls: list[str] = []
        self.while_listing: Callable[[], None] = lambda: None
        self.after_import: Callable[[], None] = lambda: None

    def add_project(self, snapshot: ProjectSnapshot, *, backend_url: str | None = None) -> FakeProject:
        project = FakeProject(
            identity=snapshot.identity,
            title=snapshot.title or "",
            label_config=snapshot.label_config or LabelConfig(),
        )
        if backend_url:
            project.backends[backend_url] = "Tandem"
        self.projects[snapshot.identity.label_studio_id] = project
        return project

    def project(self, project: int) -> ProjectSnapshot:
        found = self._open("project", project)
        return ProjectSnapshot(
            identity=found.identity,
            title=found.title,
            label_config=found.label_config,
            task_count=len(found.tasks),
            annotation_count=len(found.annotations),
            model_version=found.model_version,
            sampling=found.sampling,
        )

    def connected_projects(self, backend_url: str) -> list[int]:
        self._open("connected_projects")
        return [number for number, project in self.projects.items() if backend_url in project.backends]

    def titles_of_others(self, project: int, backend_url: str) -> set[str]:
        backends = self._open("titles_of_others", project).backends
        return {title for url, title in backends.items() if url != backend_url} - {backends.get(backend_url)}

    def annotated_tasks(
        self,
        project: int,
        schema: LabelSchema,  # noqa: ARG002
    ) -> Iterator[list[AnnotatedTask]]:
        found = self._open("annotated_tasks", project)
        tasks = list(found.tasks.values())
        for start in range(0, len(tasks), self.PAGE_SIZE):
            yield [
                AnnotatedTask(
                    task=task,
                    annotations=tuple(each for each in found.annotations.values() if each.task_id == task.id),
                )
                for task in tasks[start : start + self.PAGE_SIZE]
            ]
            self.while_listing()

    def webhooks(self, project: int) -> list[Webhook]:
        found = self._open("webhooks", project)
        if self.hidden_webhooks:
            raise self.hidden_webhooks
        return list(found.webhooks)

    def create_webhook(self, project: int, url: str) -> None:
        found = self._open("create_webhook", project)
        if self.no_webhooks:
            raise self.no_webhooks
        found.webhooks.append(make_webhook(url, webhook_id=len(found.webhooks) + 1))

    def repair_webhook(self, project: int, webhook: Webhook) -> None:
        found = self._open("repair_webhook", project)
        if self.no_webhooks:
            raise self.no_webhooks
        repaired = make_webhook(webhook.url, webhook_id=webhook.id)
        found.webhooks = [repaired if each.id == webhook.id else each for each in found.webhooks]

    def import_predictions(
        self,
        project: int,
        schema: LabelSchema,  # noqa: ARG002
        suggestions: Sequence[Suggestion],
    ) -> int:
        found = self._open("import_predictions", project)
        unknown = [each.task_id for each in suggestions if each.task_id not in found.tasks]
        if unknown:
            raise LabelStudioRejected(f"there are no tasks {unknown}", status=400)
        found.predictions += suggestions
        self.after_import()
        return len(suggestions)

    def model_versions(self, project: int) -> dict[str, int]:
        return dict(Counter(each.version for each in self._open("model_versions", project).predictions))

    def set_model_version(self, project: int, version: str) -> None:
        found = self._open("set_model_version", project)
        if version not in {each.version for each in found.predictions}:
            raise LabelStudioRejected(f"there are no predictions of {version}", status=400)
        found.model_version = version

    def delete_predictions(self, project: int, version: str) -> None:
        found = self._open("delete_predictions", project)
        found.predictions = [each for each in found.predictions if each.version != version]
        if found.model_version == version:
            found.model_version = None

    def views(self, project: int) -> list[TaskView]:
        return list(self._open("views", project).views)

    def create_view(
        self,
        project: int,
        title: str,
        task_ids: Sequence[int],
        *,
        least_sure_first: bool = True,
    ) -> int:
        found = self._open("create_view", project)
        found.least_sure_first[title] = least_sure_first
        if not found.views:
            found.views.append(TaskView(id=project * 100, title="Default", task_ids=None))
        view = TaskView(id=found.views[-1].id + 1, title=title, task_ids=frozenset(task_ids))
        found.views.append(view)
        return view.id

    def update_view(self, project: int, view_id: int, task_ids: Sequence[int]) -> None:
        found = self._open("update_view", project)
        if view_id not in {view.id for view in found.views}:
            raise LabelStudioRejected(f"view {view_id} is not there", status=404)
        found.views = [
            replace(view, task_ids=frozenset(task_ids)) if view.id == view_id else view for view in found.views
        ]

    def set_sampling(self, project: int, sampling: Sampling) -> None:
        self._open("set_sampling", project).sampling = sampling

    def _open(self, call: str, project: int | None = None) -> FakeProject:
        self.calls.append(call)
        if self.error:
            raise self.error
        if project is None:
            return next(iter(self.projects.values()), None)  # type: ignore[return-value]  # nobody looks at it
        if project not in self.projects:
            raise LabelStudioRejected(f"project {project} is not there", status=404)
        return self.projects[project]


def make_webhook(url: str, *, webhook_id: int = 1) -> Webhook:
    """A webhook as it has to be."""
    return Webhook(
        id=webhook_id,
        url=url,
        is_active=True,
        sends_payload=True,
        all_actions=True,
        header_names=("X-Webhook-Secret",),
        has_our_secret=True,
    )


class FakeExecutor:
    """Runs jobs by calling a function of the job and of ``report``."""

    def __init__(self, action: Callable[[Job, ReportProgress], str] = lambda _job, _report: "done") -> None:
        self.action = action
        self.ran: list[Job] = []
        self.closed = False

    def run(self, job: Job, report: ReportProgress) -> str:
        self.ran.append(job)
        return self.action(job, report)

    def close(self) -> None:
        self.closed = True


class Reports:
    """Keeps the progress that was reported."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)


def resolver(*addresses: str):
    """Return a stand-in for name resolution that gives these addresses for every host."""

    def resolve(_host: str, port: int):
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return resolve


class FakeInspector:
    """What Label Studio would say of its connection with us; ``error`` is what every call raises."""

    key_kind = "personal access token"

    def __init__(self) -> None:
        self.error: LabelStudioError | None = None
        self.key_error: LabelStudioError | None = None
        self.event_error: LabelStudioError | None = None
        self.version = "1.23.2"
        self.time: datetime | None = NOON
        self.connected: list[ConnectedBackend] = []
        self.backend_verdict = UrlVerdict.ACCEPTED
        self.webhook_verdict = UrlVerdict.ACCEPTED
        self.on_event: Callable[[int], None] = lambda _project: None

    def server(self) -> LabelStudioServer:
        self._check()
        return LabelStudioServer(version=self.version, time=self.time)

    def account(self) -> str:
        self._check()
        if self.key_error:
            raise self.key_error
        return "ops@example.com"

    def backends(self, project: int) -> list[ConnectedBackend]:  # noqa: ARG002
        self._check()
        return self.connected

    def judge_backend_url(self, project: int, url: str) -> UrlVerdict:  # noqa: ARG002
        self._check()
        return self.backend_verdict

    def judge_webhook_url(self, project: int, url: str) -> UrlVerdict:  # noqa: ARG002
        self._check()
        return self.webhook_verdict

    def send_event(self, project: int) -> None:
        self._check()
        if self.event_error:
            raise self.event_error
        self.on_event(project)

    def _check(self) -> None:
        if self.error:
            raise self.error


class FakeHealth:
    """Says of each URL that a Tandem answers there, unless ``problems`` has a reason."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def problem(self, base_url: str) -> str:
        return self.problems.get(base_url, "")
