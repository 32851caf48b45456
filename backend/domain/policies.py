"""When to train, and whether what was trained becomes active."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from backend.domain.labels import LabelSchema
from backend.domain.versions import ModelVersion, VersionKind


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
class Comparison:
    """Candidate against active version on the same images, none of which either was trained on.

    ``log_loss_difference`` is the mean of candidate minus active, paired by image: below zero the candidate
    is better; ``standard_error`` is that mean's.
    """

    n_images: int
    log_loss_difference: float
    standard_error: float
    accuracy_difference: float

    @property
    def is_improvement(self) -> bool:
        """Whether the candidate is better by half a standard error on any images at all."""
        return self.n_images > 0 and self.log_loss_difference <= -self.standard_error / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """Whether the candidate becomes active, and why."""

    promote: bool
    reason: str


IMMATERIAL_LOG_LOSS = 0.01
"""A difference in log loss, in nats, that no annotator would notice."""
FAR_MORE_LABELS = 1.5
"""Times the labels of the active version."""


def decide_promotion(
    candidate: ModelVersion,
    active: ModelVersion | None,
    comparison: Comparison | None,
    *,
    class_names: tuple[str, ...],
    n_withdrawn: int,
) -> PromotionDecision:
    """Decide whether a candidate replaces the active version.

    One that does not know a class of the label config (``class_names``) never replaces one that does: both came into
    the world while it was trained.

    A head with more labels only has to be no worse than noise allows, because it knows more; one with far more
    labels to be as accurate: it may have seen wrong labels, which make it less sure of everything, and are found by
    it alone. A fine-tuned network has to be better. Labels that the active version learned from and that were since
    withdrawn or changed (``n_withdrawn``) decide at once: they must be unlearned.
    """
    if active is None:
        return PromotionDecision(promote=True, reason="first version of the project")
    forgotten = [name for name in class_names if name in active.class_names and name not in candidate.class_names]
    if forgotten:
        return PromotionDecision(promote=False, reason=f"{active.name} knows {', '.join(forgotten)}, which it does not")
    if n_withdrawn:
        return PromotionDecision(
            promote=True, reason=f"{active.name} learned from {n_withdrawn} labels that were since withdrawn or changed"
        )
    unknown = [name for name in class_names if name in candidate.class_names and name not in active.class_names]
    if unknown:
        return PromotionDecision(promote=True, reason=f"{active.name} does not know {', '.join(unknown)}")
    if comparison is None or comparison.n_images == 0:
        return PromotionDecision(promote=True, reason=f"no image is left to compare with {active.name} on")
    if comparison.n_images == 1:
        return PromotionDecision(
            promote=True, reason="one image is too few to tell versions apart, and the candidate knows more"
        )
    needed = "a head must not be worse beyond one standard error"
    promote = comparison.log_loss_difference <= comparison.standard_error + IMMATERIAL_LOG_LOSS
    if candidate.kind is VersionKind.FINETUNE:
        needed = "a fine-tuned network must be better by half a standard error"
        promote = comparison.is_improvement
    if not promote and candidate.kind is VersionKind.HEAD and candidate.n_labels >= FAR_MORE_LABELS * active.n_labels:
        needed = "a head that knows half as many labels again must be as accurate"
        promote = comparison.accuracy_difference >= 0
    return PromotionDecision(
        promote=promote,
        reason=(
            f"log loss {comparison.log_loss_difference:+.3f} (± {comparison.standard_error:.3f}), accuracy "
            f"{100 * comparison.accuracy_difference:+.1f} points against {active.name} on {comparison.n_images} "
            f"images: {needed}"
        ),
    )
