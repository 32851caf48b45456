"""The nouns of Tandem and its pure decisions: which label a task has, when to train, whether to promote.

Standard library only; every noun is frozen, every datetime aware and in UTC.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# --- Label Studio's side ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSchema:
    """What one Choices control asks about one image of a task.

    ``class_names`` are what Label Studio stores: the alias where a choice has one, and the whole path,
    joined by ``PATH_SEPARATOR``, where choices are nested. ``synonyms`` are other names of each class, in the same
    order; empty where no class has any.
    """

    control_name: str
    object_name: str
    data_key: str
    class_names: tuple[str, ...]
    multiple: bool = False
    nested: bool = False
    synonyms: tuple[tuple[str, ...], ...] = ()


PATH_SEPARATOR = " > "
UNKNOWN_STAMP = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """A project's label config as read: a schema, or the problem that leaves none; ``note`` says what is ignored."""

    schema: LabelSchema | None = None
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectIdentity:
    """Which project a message is about.

    Ids may be used again, so the creation time in unix seconds belongs to it; ``UNKNOWN_STAMP`` where a message
    does not tell it, which then means the newest project with that id.
    """

    label_studio_id: int
    created_stamp: int


class Sampling(StrEnum):
    """By what Label Studio's label stream chooses the next task."""

    SEQUENTIAL = "sequential"
    UNIFORM = "uniform"
    UNCERTAINTY = "uncertainty"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSnapshot:
    """What one message or API answer says about a project; ``None`` where it says nothing."""

    identity: ProjectIdentity
    title: str | None = None
    label_config: LabelConfig | None = None
    task_count: int | None = None
    annotation_count: int | None = None
    model_version: str | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A Label Studio project as Tandem knows it.

    ``id`` is what people, scripts and version names use: Label Studio's own id, unless another project
    (an older one, or another server's) already has it. ``backbone_digest`` names the features that head
    versions of this project are fitted on; ``problems`` are faults of the connection, in plain words.
    """

    id: int
    identity: ProjectIdentity
    title: str = ""
    label_config: LabelConfig = LabelConfig()
    backbone_digest: str | None = None
    pushed_version: str | None = None
    problems: tuple[str, ...] = ()
    event_at: datetime | None = None
    predict_at: datetime | None = None
    synced_at: datetime | None = None

    @property
    def schema(self) -> LabelSchema | None:
        """The schema in use, or ``None`` while the label config is unknown or unsupported."""
        return self.label_config.schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A Label Studio task with one image.

    ``image_digest`` is the SHA-256 of the image's bytes once they were fetched, ``image_problem`` why they
    could not be; ``backbone_digest`` names the features stored for the image; ``pushed_version`` the model version
    whose suggestion Label Studio holds; ``drawn_at_random`` says that chance alone chose it to be labelled.
    """

    id: int
    image_url: str | None
    image_digest: str | None = None
    image_problem: str | None = None
    backbone_digest: str | None = None
    pushed_version: str | None = None
    drawn_at_random: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One annotator's answer to one task; no class names means it teaches nothing (skipped, or left empty)."""

    id: int
    task_id: int
    class_names: tuple[str, ...]
    updated_at: datetime
    ground_truth: bool = False
    annotator_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """An image with the label that its task's annotations agree on."""

    task_id: int
    image_digest: str
    class_names: tuple[str, ...]


def agreed_label(annotations: Sequence[Annotation], schema: LabelSchema) -> tuple[str, ...] | None:
    """Return the label that several annotations of one task give together, or ``None`` where there is none.

    Ground truth wins over everything, the newest one over older ones. Without it the majority decides: for
    one class per image the class with most votes, for several each class held by more than half of the
    annotators. A tie goes to the newest annotation among the tied, no majority for any class to the newest of
    all. Classes that are no longer in the label config do not count.
    """
    known = set(schema.class_names)
    votes = [
        (annotation, tuple(name for name in annotation.class_names if name in known))
        for annotation in sorted(annotations, key=lambda each: (each.updated_at, each.id))
    ]
    votes = [(annotation, names) for annotation, names in votes if names]
    if not votes:
        return None
    ground_truth = [names for annotation, names in votes if annotation.ground_truth]
    newest = (ground_truth or [names for _, names in votes])[-1]
    if ground_truth or len(votes) == 1:
        return newest if schema.multiple else newest[:1]
    if schema.multiple:
        counts = Counter(name for _, names in votes for name in set(names))
        majority = tuple(name for name in schema.class_names if counts[name] * 2 > len(votes))
        return majority or newest
    counts = Counter(names[0] for _, names in votes)
    most = max(counts.values())
    return next(names[:1] for _, names in reversed(votes) if counts[names[0]] == most)


def agreed_labels(annotations: Sequence[Annotation], schema: LabelSchema) -> dict[int, tuple[str, ...]]:
    """Return the agreed label of every task that has one, by task id."""
    answers: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        answers[annotation.task_id].append(annotation)
    agreed = {task_id: agreed_label(given, schema) for task_id, given in sorted(answers.items())}
    return {task_id: label for task_id, label in agreed.items() if label}


# --- what Label Studio tells us ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSeen:
    """A project was connected or changed."""

    project: ProjectSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksSeen:
    """Tasks were created, or appeared in a request."""

    project: ProjectSnapshot
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsSeen:
    """Annotations were created or changed; ``tasks`` are the tasks they belong to."""

    project: ProjectSnapshot
    tasks: tuple[Task, ...]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationsDeleted:
    """Annotations were deleted; Label Studio tells their ids only."""

    project: ProjectSnapshot
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksDeleted:
    """Tasks were deleted, and their annotations with them."""

    project: ProjectSnapshot
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequested:
    """Somebody pressed Start Training, or automatic training fired."""

    project: ProjectSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UnclearEvent:
    """An event without a payload, or of an unknown action: something may have changed, reconcile."""

    action: str
    project: ProjectSnapshot | None = None


Event = ProjectSeen | TasksSeen | AnnotationsSeen | AnnotationsDeleted | TasksDeleted | TrainingRequested | UnclearEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedTask:
    """A task and all its annotations as the API tells them."""

    task: Task
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook of a Label Studio project."""

    id: int
    url: str
    is_active: bool
    sends_payload: bool
    all_actions: bool
    header_names: tuple[str, ...]
    has_our_secret: bool


# --- what Tandem tells Label Studio --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A pre-annotation; ``score`` is the calibrated probability, 0 to 1, that all of it is right."""

    task_id: int
    class_names: tuple[str, ...]
    score: float
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSuggestion:
    """Why a task gets no suggestion."""

    task_id: int
    reason: str


# --- views of tasks ------------------------------------------------------------------------------------


class ViewKind(StrEnum):
    """The views that Tandem keeps in Label Studio's Data Manager."""

    LABEL_NEXT = "label_next"
    CHECK_LABELS = "check_labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A view of Label Studio's Data Manager: a tab.

    ``task_ids`` are the tasks that it is filtered to; ``None`` where it is filtered by anything else, or not at all.
    """

    id: int
    title: str
    task_ids: frozenset[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptView:
    """A view that Tandem made.

    It shows ``task_ids``, or still ``previous_task_ids`` where the last change did not come through. ``released``
    once somebody changed or deleted it by hand: then it is theirs.
    """

    kind: ViewKind
    label_studio_id: int
    task_ids: frozenset[int]
    previous_task_ids: frozenset[int] = frozenset()
    released: bool = False

    def is_as_left(self, view: TaskView | None) -> bool:
        """Tell whether a view, as Label Studio has it now, is as Tandem left it."""
        return view is not None and view.task_ids in (self.task_ids, self.previous_task_ids)


# --- jobs ----------------------------------------------------------------------------------------------


class JobKind(StrEnum):
    """What a job does; the value is what the API shows."""

    SYNC = "sync"
    EMBED = "embed"
    HEAD = "head"
    FINETUNE = "finetune"
    PUSH = "push"
    QUERY = "query"


class JobStatus(StrEnum):
    """Where a job is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of background work for one project; at most one queued and one running per project and kind."""

    id: int
    project_id: int
    kind: JobKind
    status: JobStatus
    created_at: datetime
    run_after: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_until: datetime | None = None
    worker: str | None = None
    attempts: int = 0
    cancel_requested: bool = False
    progress: Progress = Progress()
    reason: str | None = None

    def eta_s(self, now: datetime) -> float | None:
        """Return the seconds left at the pace so far, or ``None`` while nothing can be said."""
        if self.status is not JobStatus.RUNNING or self.started_at is None or not self.progress.done:
            return None
        elapsed_s = (now - self.started_at).total_seconds()
        return elapsed_s * max(0, self.progress.total - self.progress.done) / self.progress.done


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a job is tried again after an error that may pass."""

    max_attempts: int = 12
    first_delay_s: float = 1.0
    longest_delay_s: float = 60.0

    def next_delay(self, attempts: int) -> timedelta | None:
        """Return how long to wait after ``attempts`` tries, doubling up to a limit, or ``None`` to give up."""
        if attempts >= self.max_attempts:
            return None
        return timedelta(seconds=min(self.longest_delay_s, self.first_delay_s * 2 ** (attempts - 1)))


JOB_DURATION_BOUNDS_S = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTally:
    """How many jobs of a kind ended in a status after at most ``bound_s``, and more than the bound before.

    Tallies only grow, whatever becomes of the jobs they counted; ``total_s`` is the time these jobs ran.
    """

    kind: JobKind
    status: JobStatus
    bound_s: float
    n_jobs: int
    total_s: float


# --- model versions --------------------------------------------------------------------------------------


class VersionKind(StrEnum):
    """How a version was learned."""

    HEAD = "head"
    FINETUNE = "finetune"


class VersionStatus(StrEnum):
    """Where a version is in its life; at most one per project is active."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    REJECTED = "rejected"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a version scores on images it was not trained on; all but the losses, Brier and ECE: higher is better."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    log_loss: float
    brier: float
    ece: float


INTERRUPTED = "its training was interrupted before it was judged"
"""Why a version was rejected that may have no weights, and says nothing about what the next one will be worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One learned model of a project; ``fingerprint`` identifies the exact labels and features it learned from."""

    project_id: int
    number: int
    name: str
    kind: VersionKind
    status: VersionStatus
    created_at: datetime
    n_labels: int
    n_validation: int
    metrics: Metrics
    class_names: tuple[str, ...]
    backbone_digest: str
    fingerprint: str
    reason: str = ""

    @property
    def was_judged(self) -> bool:
        """Whether it was decided what it is worth."""
        return self.status is not VersionStatus.CANDIDATE and self.reason != INTERRUPTED


MIN_VERSION_AGE = timedelta(days=1)
"""Nobody has had the time to miss a younger version."""


def surplus_versions(versions: Sequence[ModelVersion], n_kept: int, now: datetime) -> list[ModelVersion]:
    """Return whose files nobody will miss, of a project's versions, newest first.

    The newest ``n_kept`` of those that were rejected or retired are worth going back to; one in use or not judged yet,
    or younger than a day, always is.
    """
    ended = [each for each in versions if each.status in (VersionStatus.REJECTED, VersionStatus.RETIRED)]
    return [each for each in ended[n_kept:] if each.created_at < now - MIN_VERSION_AGE]


def finetune_labels(versions: Sequence[ModelVersion]) -> int:
    """Return with how many labels a network was fine-tuned last, 0 for never; rejected candidates count too."""
    return max((version.n_labels for version in versions if version.kind is VersionKind.FINETUNE), default=0)


def version_name(project_id: int, number: int, checkpoint_digest: str) -> str:
    """Return the string that Label Studio shows as model version."""
    return f"p{project_id}-v{number}-{checkpoint_digest[:8]}"


def untrained_name(project_id: int) -> str:
    """Return what Label Studio is told before there is a version: it insists on a non-empty string."""
    return f"p{project_id}-v0-untrained"


# --- decisions -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """What there is to learn from; ``n_finetune_labels`` were known at the last fine-tuning."""

    n_labels: int
    n_classes: int
    n_embedded_labels: int
    n_finetune_labels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDecision:
    """What should be trained next, ``None`` for nothing yet, and why."""

    next: VersionKind | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPolicy:
    """When labels are enough to train, and how long to wait for more of them."""

    min_labels: int
    finetune_min_labels: int
    finetune_growth: float = 1.5
    quiet_s: float = 1.0
    max_wait_s: float = 10.0

    def decide(self, counts: LabelCounts, schema: LabelSchema) -> TrainingDecision:
        """Return the next training that the labels known so far justify."""
        if counts.n_labels < self.min_labels:
            return TrainingDecision(next=None, reason=f"waiting for labels: {counts.n_labels} of {self.min_labels}")
        if counts.n_classes < 2 and not schema.multiple:
            return TrainingDecision(next=None, reason="waiting for labels of a second class: all have the same one")
        if self.finetune_is_due(counts):
            return TrainingDecision(
                next=VersionKind.FINETUNE, reason=f"{counts.n_labels} labels are enough to fine-tune"
            )
        due = max(self.finetune_min_labels, int(counts.n_finetune_labels * self.finetune_growth))
        return TrainingDecision(
            next=VersionKind.HEAD, reason=f"each new label re-fits the head; fine-tuning is due at {due} labels"
        )

    def finetune_is_due(self, counts: LabelCounts) -> bool:
        """Tell whether there are enough labels, and enough more than at the last fine-tuning."""
        due = max(self.finetune_min_labels, int(counts.n_finetune_labels * self.finetune_growth))
        return counts.n_embedded_labels >= due

    def run_after(self, now: datetime, first_enqueued_at: datetime | None) -> datetime:
        """Return when to start: after a quiet moment, but never later than the longest wait since the first event."""
        quiet = now + timedelta(seconds=self.quiet_s)
        if first_enqueued_at is None:
            return quiet
        return min(quiet, first_enqueued_at + timedelta(seconds=self.max_wait_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """Which suggestions annotators see, so that bad ones do not lead them, and some images are labelled without any.

    Attributes:
        min_accuracy: what a version must reach before any of its suggestions is shown.
        audit_share: of all images, from 0 to 1, those whose suggestion is never shown: labels that nobody was led to.
    """

    min_accuracy: float = 0.0
    audit_share: float = 0.0

    def shows(self, accuracy: float, image_url: str | None) -> bool:
        """Tell whether the suggestion of a version that accurate is shown for an image; audited ones stay the same."""
        if accuracy < self.min_accuracy:
            return False
        draw = int.from_bytes(hashlib.sha256((image_url or "").encode()).digest()[:8], "big") / 2**64
        return draw >= self.audit_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against active version on the same images, none of which either was trained on.

    ``log_loss_difference`` is the mean of candidate minus active, paired by image: below zero the candidate
    is better; ``standard_error`` is that mean's.
    """

    n_images: int
    log_loss_difference: float
    standard_error: float
    accuracy_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """Whether the candidate becomes active, and why."""

    promote: bool
    reason: str


IMMATERIAL_LOG_LOSS = 0.01
"""A difference in log loss, in nats, that no annotator would notice."""


def decide_promotion(
    candidate: ModelVersion, active: ModelVersion | None, comparison: Comparison | None, *, n_withdrawn: int
) -> PromotionDecision:
    """Decide whether a candidate replaces the active version.

    A head with more labels only has to be no worse than noise allows, because it knows more; a fine-tuned
    network has to be better. Labels that the active version learned from and that were since withdrawn or
    changed (``n_withdrawn``) decide at once: they must be unlearned.
    """
    if active is None:
        return PromotionDecision(promote=True, reason="first version of the project")
    if n_withdrawn:
        return PromotionDecision(
            promote=True, reason=f"{active.name} learned from {n_withdrawn} labels that were since withdrawn or changed"
        )
    unknown = [name for name in candidate.class_names if name not in active.class_names]
    if unknown:
        return PromotionDecision(promote=True, reason=f"{active.name} does not know {', '.join(unknown)}")
    if comparison is None or comparison.n_images == 0:
        return PromotionDecision(promote=True, reason=f"no image is left to compare with {active.name} on")
    if comparison.n_images == 1:
        return PromotionDecision(
            promote=True, reason="one image is too few to tell versions apart, and the candidate knows more"
        )
    needed = "a head must not be worse beyond one standard error"
    limit = comparison.standard_error + IMMATERIAL_LOG_LOSS
    if candidate.kind is VersionKind.FINETUNE:
        needed = "a fine-tuned network must be better by half a standard error"
        limit = -comparison.standard_error / 2
    promote = comparison.log_loss_difference <= limit
    return PromotionDecision(
        promote=promote,
        reason=(
            f"log loss {comparison.log_loss_difference:+.3f} (± {comparison.standard_error:.3f}), accuracy "
            f"{100 * comparison.accuracy_difference:+.1f} points against {active.name} on {comparison.n_images} "
            f"images: {needed}"
        ),
    )
