"""What the services need from the world, as Protocols; adapters implement them, ``bootstrap`` chooses the adapters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backend.domain import (
    AnnotatedTask,
    Annotation,
    Job,
    JobKind,
    JobStatus,
    JobTally,
    KeptView,
    LabelSchema,
    ModelVersion,
    Progress,
    Project,
    ProjectIdentity,
    ProjectSnapshot,
    Sampling,
    Suggestion,
    Task,
    TaskView,
    ViewKind,
    Webhook,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware and in UTC."""


# --- state -----------------------------------------------------------------------------------------------


class ProjectStore(Protocol):
    """Projects."""

    def resolve(self, identity: ProjectIdentity) -> Project:
        """Return the project with this identity; make it when it was never seen.

        An identity without a creation time is the newest project with its id, and one stored without it gets it as
        soon as it is told. A new project takes Label Studio's id as its own, or, when another project has that, an id
        of its own above one million.
        """

    def find(self, identity: ProjectIdentity) -> Project | None:
        """Return the project that ``resolve`` would return without having to store anything, if there is one."""

    def get(self, project_id: int) -> Project:
        """Return a project.

        Raises:
            NotFound: there is none with this id.
        """

    def all(self) -> list[Project]:
        """Return all projects by id."""

    def save(self, project: Project) -> None:
        """Store all fields of a known project."""


class TaskStore(Protocol):
    """Replica of the tasks of each project."""

    def upsert(self, project_id: int, tasks: Sequence[Task]) -> int:
        """Store ``id`` and ``image_url`` of each task and return how many were new or changed.

        A changed ``image_url`` clears what was known of the old image; an unchanged task keeps it. A task id used
        again for another image therefore starts anew.
        """

    def delete(self, project_id: int, task_ids: Sequence[int]) -> int:
        """Remove tasks and their annotations; unknown ids are ignored. Return how many tasks were removed."""

    def get(self, project_id: int, task_ids: Sequence[int]) -> list[Task]:
        """Return the known ones among these tasks, by id."""

    def all(self, project_id: int) -> list[Task]:
        """Return all tasks of a project, by id."""

    def to_embed(self, project_id: int, backbone_digest: str | None, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks with an image but no features of this backbone; labelled tasks first.

        Tasks whose image has a problem are left out.
        """

    def record_image(self, project_id: int, task: Task) -> None:
        """Store digest, problem and backbone digest of the task's image, if the task still has that ``image_url``."""

    def forgive_problems(self, project_id: int) -> int:
        """Clear the image problems of a project, so that its images are tried again; return how many."""

    def record_pushed(self, project_id: int, task_ids: Sequence[int], version: str) -> None:
        """Store that Label Studio holds this version's suggestion for these tasks."""

    def forget_pushed(self, project_id: int) -> None:
        """Store that Label Studio holds no suggestion of ours for any task."""

    def record_drawn(self, project_id: int, task_ids: Sequence[int]) -> None:
        """Store that chance alone chose these tasks to be labelled."""

    def count(self, project_id: int) -> int:
        """Return the number of tasks."""

    def count_embedded(self, project_id: int, backbone_digest: str | None) -> int:
        """Return the number of tasks with features of this backbone."""

    def count_problems(self, project_id: int) -> int:
        """Return the number of tasks whose image has a problem."""

    def problems(self, project_id: int, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks whose image has a problem, by id."""


class AnnotationStore(Protocol):
    """Replica of the annotations of each project, keyed by annotation id; the newest ``updated_at`` wins."""

    def upsert(self, project_id: int, annotations: Sequence[Annotation], *, read_at: datetime | None = None) -> int:
        """Store annotations and return how many changed something.

        An annotation older than the stored one is ignored, and so is one that was deleted and not changed since;
        but Label Studio's API is the truth: ``read_at`` says when it began to list these annotations, and revives
        those deleted before.
        """

    def delete(self, project_id: int, annotation_ids: Sequence[int], deleted_at: datetime) -> int:
        """Mark annotations as deleted, known or not, so that late events cannot revive them.

        Returns:
            How many live annotations were deleted.
        """

    def all(self, project_id: int) -> list[Annotation]:
        """Return all live annotations of tasks that are known, by id."""


class JobStore(Protocol):
    """Jobs as rows: at most one queued and one running per project and kind."""

    def enqueue(self, project_id: int, kind: JobKind, run_after: datetime, now: datetime) -> Job:
        """Queue a job, or move the one already queued to ``run_after``; return it."""

    def queued(self, project_id: int, kind: JobKind) -> Job | None:
        """Return the queued job of this kind, if any."""

    def claim(self, kinds: Sequence[JobKind], worker: str, now: datetime, lease_until: datetime) -> Job | None:
        """Take the queued job that has waited longest past its ``run_after``; ``None`` when none is due.

        A job whose project already runs one of the same kind is not due. Counts an attempt.
        """

    def is_due(self, kinds: Sequence[JobKind], now: datetime) -> bool:
        """Tell whether there is a job to claim, without keeping writers waiting."""

    def renew(self, job_id: int, worker: str, lease_until: datetime, progress: Progress | None) -> Job:
        """Extend the lease, store the progress and return the job, with ``cancel_requested`` as it now is.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def finish(self, job_id: int, worker: str, status: JobStatus, reason: str | None, now: datetime) -> None:
        """Store the outcome.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def requeue(self, job_id: int, worker: str, run_after: datetime, reason: str | None) -> None:
        """Put a running job back into the queue, merging it with one queued meanwhile; keeps its attempts.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def shorten_waits(self, latest_lease: datetime, latest_start: datetime) -> None:
        """Let no lease and no wait of a queued job reach further than that: the clock has gone back since."""

    def release(self, job_id: int, worker: str, now: datetime, reason: str | None) -> None:
        """Put a running job back into the queue as if it had never been claimed: the attempt does not count.

        Raises:
            JobLost: the job is no longer this worker's.
        """

    def requeue_expired(self, now: datetime) -> list[Job]:
        """Put running jobs whose lease has passed back into the queue and return them."""

    def cancel(self, job_id: int, now: datetime) -> Job:
        """Cancel a queued job at once, ask a running one to stop; finished ones stay as they are.

        Raises:
            NotFound: there is no such job.
        """

    def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFound: there is no such job.
        """

    def all(self, project_id: int, limit: int = 100) -> list[Job]:
        """Return a project's jobs, newest first."""

    def newest(self, project_id: int, kind: JobKind) -> Job | None:
        """Return a project's newest job of a kind, if any."""

    def unfinished(self) -> list[Job]:
        """Return the queued and running jobs of all projects, by id."""

    def tallies(self) -> list[JobTally]:
        """Return how many jobs ended how, and after how long, since the database was made."""

    def prune(self, finished_before: datetime) -> int:
        """Delete final jobs that finished before a moment; return how many."""


class VersionStore(Protocol):
    """Model versions; numbers only grow, at most one per project is active."""

    def next_number(self, project_id: int) -> int:
        """Reserve and return the next version number of a project; never the same twice."""

    def add(self, version: ModelVersion) -> None:
        """Store a new version."""

    def active(self, project_id: int) -> ModelVersion | None:
        """Return the active version, if any."""

    def get(self, project_id: int, name: str) -> ModelVersion:
        """Return a version by name.

        Raises:
            NotFound: the project has no such version.
        """

    def all(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions, newest first."""

    def activate(self, project_id: int, name: str, reason: str) -> ModelVersion:
        """Make a version the active one, retire the one that was, and return it with its new status.

        Raises:
            NotFound: the project has no such version.
        """

    def reject(self, project_id: int, name: str, reason: str) -> None:
        """Mark a candidate as rejected."""


class ViewStore(Protocol):
    """The views of Label Studio's Data Manager that Tandem made: at most one per project and kind."""

    def get(self, project_id: int, kind: ViewKind) -> KeptView | None:
        """Return the view of this kind, if one was ever made."""

    def save(self, project_id: int, view: KeptView) -> None:
        """Store what is known of a view now."""


class BackboneStore(Protocol):
    """What is known of pretrained backbones, by their digest."""

    def categories(self, digest: str) -> tuple[str, ...]:
        """Return what the classifier that a backbone was pretrained with tells apart; nothing where none is known."""

    def save_categories(self, digest: str, categories: tuple[str, ...]) -> None:
        """Store what the classifier that a backbone was pretrained with tells apart."""


class Stores(Protocol):
    """All stores, sharing one transaction."""

    projects: ProjectStore
    tasks: TaskStore
    annotations: AnnotationStore
    jobs: JobStore
    versions: VersionStore
    views: ViewStore
    backbones: BackboneStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What requests for suggestions need of a project: its active version, if any, and the known tasks asked for."""

    project: Project
    active: ModelVersion | None
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDump:
    """The rows of each table, one JSON object a line, at a revision of the schema; each is read once."""

    revision: str
    tables: Mapping[str, Iterable[bytes]]


class Database(Protocol):
    """Where the stores live."""

    def transaction(self) -> AbstractContextManager[Stores]:
        """Open a write transaction: durable when the block ends, undone when it raises."""

    def snapshot(self) -> AbstractContextManager[Stores]:
        """Open a consistent view for reading; writing in it is an error."""

    def check_schema(self) -> None:
        """Make sure that the database can be read, and that its schema is the one that this code was written for.

        Raises:
            StoreUnavailable: it cannot be read.
            ConfigurationError: its schema is another one.
            NotFound: it has none yet.
        """

    def find(self, identity: ProjectIdentity, task_ids: Sequence[int]) -> Found | None:
        """Return what there is of a project and these tasks, each as it is when it is read; quicker than a snapshot."""

    def dump(self) -> AbstractContextManager[DatabaseDump]:
        """Open all rows of one moment for reading."""

    def check_restorable(self, revision: str) -> None:
        """Make sure that rows of this revision can be restored, and that none are lost by that.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
        """

    def restore(self, dump: DatabaseDump) -> int:
        """Fill an empty database with the rows of a dump, all or none, and return how many.

        Raises:
            Conflict: there are projects already.
            ConfigurationError: a newer Tandem made the rows.
            InvalidRequest: a table or row that cannot be one of ours.
        """

    def close(self) -> None:
        """Close all connections; who goes on opens new ones."""


class FeatureStore(Protocol):
    """Float16 feature rows keyed by backbone digest and image digest."""

    def append(
        self,
        backbone_digest: str,
        image_digests: Sequence[str],
        features: NDArray[np.float16],
        *,
        block_sizes: tuple[int, ...],
    ) -> None:
        """Store rows of shape (n_images, n_features) durably; images already stored are left as they are.

        ``block_sizes`` says from how many columns of which block of the backbone a row is put together.
        """

    def block_sizes(self, backbone_digest: str) -> tuple[int, ...]:
        """Return the block sizes of this backbone's rows.

        Raises:
            NotFound: nothing is stored for this backbone.
        """

    def read(self, backbone_digest: str, image_digests: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Return the rows found, (n_found, n_features) in the order asked, and which were found, (n_images,)."""

    def read_around(
        self, backbone_digest: str, image_digest: str, n_rows: int
    ) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and rows, (n_found, n_features), of up to ``n_rows`` images stored next to one, and its own.

        Nothing where the image has no row.
        """

    def holds(self, backbone_digest: str, image_digests: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which images have a row, (n_images,); what ``read`` would find, without reading it."""

    def count(self, backbone_digest: str) -> int:
        """Return the number of rows of this backbone."""

    def backbones(self) -> list[str]:
        """Return the digests of the backbones that something is stored for, sorted."""

    def compact(self, backbone_digest: str, keep: Collection[str]) -> int:
        """Remove the rows of all images but these and of those appended meanwhile; return how many were removed."""

    def segments(self, backbone_digest: str) -> Iterator[bytes]:
        """Yield the rows there are now in pieces that ``add_segment`` takes in again."""

    def add_segment(self, backbone_digest: str, segment: bytes) -> None:
        """Store the rows of a piece that may come from anywhere, but for those already stored.

        Raises:
            ValueError: it is no segment, or one of another backbone.
        """

    def delete(self, backbone_digest: str) -> None:
        """Remove all rows of a backbone; nothing happens when there are none."""


class ArtifactStore(Protocol):
    """Immutable folders by key, such as ``versions/p5/p5-v3-1a2b3c4d`` and ``backbones/<digest>``."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Lend an empty local folder that is removed at the end."""

    def publish(self, key: str, folder: Path) -> None:
        """Store a finished folder whole and durably; a key that exists already keeps its first content."""

    def fetch(self, key: str) -> Path:
        """Return a local folder with the content; read only.

        Raises:
            NotFound: nothing was published under this key.
        """

    def keys(self, prefix: str) -> list[str]:
        """Return the published keys below a prefix, sorted."""

    def delete(self, key: str) -> None:
        """Remove what was published under a key; nothing happens when there is nothing."""


# --- images and features -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """The bytes of an image on local disk; ``digest`` is their SHA-256 in hex."""

    digest: str
    path: Path


class Cleanable(Protocol):
    """A folder that processes may die in while they write."""

    def clean(self) -> object:
        """Remove what processes that died left behind; what is still being written stays."""


class ImageSource(Protocol):
    """Brings images in, within limits of time, size and origin."""

    def fetch(self, image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:
        """Return the image behind the URL as it is now.

        Raises:
            ImageError: one of its kinds, with the reason.
        """

    def cached(self, digest: str) -> CachedImage | None:
        """Return an image from the local cache, or ``None`` when it is not there (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Features of some images.

    ``features`` has a row for each image that could be read, made of ``block_sizes`` columns of each block;
    ``problems`` maps the index of each other image to the reason.
    """

    backbone_digest: str
    block_sizes: tuple[int, ...]
    features: NDArray[np.float16]
    problems: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderBackbone:
    """A backbone by its digest; ``categories`` are what the classifier it was pretrained with tells apart, if any.

    ``note`` is what a user should know about it, in plain words; often nothing.
    """

    digest: str
    categories: tuple[str, ...] = ()
    note: str = ""


class Embedder(Protocol):
    """Turns images into features, and features into what the pretrained classifier sees in them."""

    def base(self) -> EmbedderBackbone:
        """Return the pretrained backbone that the settings name.

        Raises:
            EmbedderUnavailable: it is not up (yet).
        """

    def embed(self, paths: Sequence[Path], *, backbone_digest: str | None = None, urgent: bool = False) -> Embedding:
        """Embed image files with the pretrained backbone, or with a fine-tuned one named by its digest.

        ``urgent`` requests overtake background ones.

        Raises:
            EmbedderUnavailable: it is not up (yet), or ended while at work.
        """

    def classify(
        self, features: NDArray[np.float16], groups: Sequence[Sequence[str]], *, backbone_digest: str
    ) -> NDArray[np.float32]:
        """Return how probable each group of categories is, (n_images, n_groups + 1), by feature rows of that backbone.

        The last column is the most probable category outside of all groups, 0 where none is.

        Raises:
            EmbedderUnavailable: it is not up (yet), or does not run that backbone or know those categories (any more).
        """


# --- this machine ------------------------------------------------------------------------------------------


class EmbedderState(StrEnum):
    """Whether there is an embedding process on this machine, and how far it is."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """Room on a disk."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one GPU, whoever uses it."""

    index: int
    used_bytes: int
    total_bytes: int


class Machine(Protocol):
    """The machine this process runs on."""

    def check_writable(self) -> None:
        """Make sure that the folder of all local state can be written to.

        Raises:
            ConfigurationError: it cannot.
        """

    def disk(self) -> DiskSpace:
        """Return the room on the disk of all local state."""

    def gpus(self) -> list[GpuMemory]:
        """Return the memory of each GPU."""

    def embedder(self) -> EmbedderState:
        """Return how the embedding process is."""


# --- Label Studio ------------------------------------------------------------------------------------------


class LabelStudioGateway(Protocol):
    """Label Studio's API; every method raises a kind of ``LabelStudioError`` when it does not succeed.

    ``project`` arguments are Label Studio's own project ids.
    """

    @property
    def base_url(self) -> str:
        """Where Label Studio is."""

    def project(self, project: int) -> ProjectSnapshot:
        """Return a project as it is now."""

    def connected_projects(self, backend_url: str) -> list[int]:
        """Return the ids of the projects that have a backend with this URL."""

    def annotated_tasks(self, project: int, schema: LabelSchema) -> Iterator[list[AnnotatedTask]]:
        """Yield all tasks of a project page by page, with all their annotations, skipped ones included."""

    def webhooks(self, project: int) -> list[Webhook]:
        """Return a project's webhooks."""

    def create_webhook(self, project: int, url: str) -> None:
        """Create a webhook for all actions, with payload and our secret header."""

    def repair_webhook(self, project: int, webhook: Webhook) -> None:
        """Make an existing webhook active, for all actions, with payload and our secret header; other headers stay."""

    def import_predictions(self, project: int, schema: LabelSchema, suggestions: Sequence[Suggestion]) -> int:
        """Store predictions and return how many Label Studio says it made."""

    def model_versions(self, project: int) -> dict[str, int]:
        """Return how many predictions are stored under each model version."""

    def set_model_version(self, project: int, version: str) -> None:
        """Make a version the one whose predictions annotators see and sampling looks at."""

    def delete_predictions(self, project: int, version: str) -> None:
        """Delete all predictions of a version."""

    def views(self, project: int) -> list[TaskView]:
        """Return a project's views in the Data Manager, from left to right."""

    def create_view(self, project: int, title: str, task_ids: Sequence[int], *, least_sure_first: bool = True) -> int:
        """Make a view of these tasks, the least sure prediction first or the surest, and return its id.

        A project without any view gets one of all tasks before it, so that they stay in sight.
        """

    def update_view(self, project: int, view_id: int, task_ids: Sequence[int]) -> None:
        """Make a view show these tasks; its title, order, columns and the like stay."""

    def set_sampling(self, project: int, sampling: Sampling) -> None:
        """Set by what the label stream chooses the next task."""


class UrlVerdict(StrEnum):
    """What Label Studio makes of a URL of ours, without asking it."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    BLOCKED = "blocked"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStudioServer:
    """A Label Studio; ``time`` is its clock's, where it tells."""

    version: str
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedBackend:
    """A backend of a project; ``problem`` says why Label Studio could not reach it just now."""

    url: str
    title: str
    is_connected: bool
    problem: str = ""


class LabelStudioInspector(Protocol):
    """Questions to Label Studio about its connection with us; they raise a kind of ``LabelStudioError``.

    Nothing is changed. ``project`` arguments are Label Studio's own project ids.
    """

    @property
    def key_kind(self) -> str:
        """What kind of API key the settings give, in words."""

    def server(self) -> LabelStudioServer:
        """Return what is running there; no API key is needed for that."""

    def account(self) -> str:
        """Return whose API key it is."""

    def backends(self, project: int) -> list[ConnectedBackend]:
        """Return the backends of a project, each of them called by Label Studio just now."""

    def judge_backend_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would connect a backend with this URL."""

    def judge_webhook_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would make a webhook with this URL."""

    def send_event(self, project: int) -> None:
        """Make Label Studio send an event about a project: it is saved with the title that it has."""


class HealthProbe(Protocol):
    """Looks whether a Tandem answers."""

    def problem(self, base_url: str) -> str:
        """Return why no Tandem answers at a URL, nothing when one does."""


# --- running jobs --------------------------------------------------------------------------------------------

ReportProgress = Callable[[Progress], None]
"""Called by running work now and then; raises ``JobCancelled`` when the job should stop."""


class Executor(Protocol):
    """Runs jobs, outside the calling process or in it."""

    def run(self, job: Job, report: ReportProgress) -> str:
        """Run a job to its end and return its outcome in words.

        Raises:
            TrainingImpossible: there is not enough to learn from (yet).
            JobCancelled: ``report`` said so.
            JobFailed: it ended without success; the message is the reason.
        """

    def close(self) -> None:
        """End everything that is still running."""
