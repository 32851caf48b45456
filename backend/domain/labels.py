"""What is asked about an image, what annotators answered, and the label that their answers agree on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime


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

    def takes(self, other: LabelSchema) -> bool:
        """Tell whether all that could be suggested under another schema is valid under this one."""
        same = replace(other, class_names=self.class_names, synonyms=self.synonyms) == self
        return same and set(other.class_names) <= set(self.class_names)


PATH_SEPARATOR = " > "


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """A project's label config as read: a schema, or the problem that leaves none; ``note`` says what is ignored."""

    schema: LabelSchema | None = None
    problem: str | None = None
    note: str | None = None


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

    Ground truth wins over everything, the newest one over older ones. Without it the majority decides, of what each
    annotator said last: for one class per image the class with most votes, for several each class held by more than
    half of the annotators. A tie goes to the newest annotation among the tied, no majority for any class to the
    newest of all. Classes that are no longer in the label config do not count.
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
    answers = _last_answers(votes)
    newest = (ground_truth or answers)[-1]
    if ground_truth or len(answers) == 1:
        return newest if schema.multiple else newest[:1]
    if schema.multiple:
        counts = Counter(name for names in answers for name in set(names))
        majority = tuple(name for name in schema.class_names if counts[name] * 2 > len(answers))
        return majority or newest
    counts = Counter(names[0] for names in answers)
    most = max(counts.values())
    return next(names[:1] for names in reversed(answers) if counts[names[0]] == most)


def _last_answers(votes: Sequence[tuple[Annotation, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Return what each annotator said last, the newest answer last; one of nobody known stands for itself."""
    answers: dict[tuple[int | None, int | None], tuple[str, ...]] = {}
    for annotation, names in votes:
        who = (annotation.annotator_id, None if annotation.annotator_id else annotation.id)
        answers.pop(who, None)
        answers[who] = names
    return list(answers.values())


def agreed_labels(annotations: Sequence[Annotation], schema: LabelSchema) -> dict[int, tuple[str, ...]]:
    """Return the agreed label of every task that has one, by task id."""
    answers: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        answers[annotation.task_id].append(annotation)
    agreed = {task_id: agreed_label(given, schema) for task_id, given in sorted(answers.items())}
    return {task_id: label for task_id, label in agreed.items() if label}
