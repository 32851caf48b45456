"""How far annotators agree; standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from backend.domain import Annotation, LabelSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """On what share of the ``n_tasks`` that several annotators answered all of them gave the same label.

    ``share`` lies between 0 and 1, higher is better, and is ``None`` where there is no such task.
    """

    n_tasks: int
    share: float | None


def annotator_agreement(annotations: Sequence[Annotation], schema: LabelSchema) -> Agreement:
    """Return how far annotators agree.

    What somebody said last about a task is their answer; an annotation without an annotator is somebody else's.
    As in ``domain.agreed_label`` skipped annotations, and classes that are no longer in the label config, do not
    count, and where an image has one class the first one named is it.
    """
    answers: dict[int, dict[object, frozenset[str]]] = defaultdict(dict)
    for annotation in sorted(annotations, key=lambda each: (each.updated_at, each.id)):
        names = [name for name in annotation.class_names if name in schema.class_names]
        if names:
            nobody = annotation.annotator_id is None
            annotator = ("annotation", annotation.id) if nobody else ("annotator", annotation.annotator_id)
            answers[annotation.task_id][annotator] = frozenset(names if schema.multiple else names[:1])
    shared = [list(given.values()) for given in answers.values() if len(given) > 1]
    n_agreed = sum(len(set(given)) == 1 for given in shared)
    return Agreement(n_tasks=len(shared), share=n_agreed / len(shared) if shared else None)
