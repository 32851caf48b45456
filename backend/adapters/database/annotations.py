"""Annotations in SQL: the replica of what Label Studio holds, with a tombstone for each one deleted.

What changes is decided here and not in SQL, as for tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, case, select, update

from backend.adapters.database.statements import AnyRow, chunks, insert, replace
from backend.adapters.database.tables import annotation_table, task_table
from backend.domain import Annotation


class SqlAnnotationStore:
    """Annotations on one connection; see ``backend.ports.AnnotationStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upsert(self, project_id: int, annotations: Sequence[Annotation], *, read_at: datetime | None = None) -> int:
        """Store annotations and return how many changed something.

        An annotation older than the stored one is ignored, and so is one that was deleted and not changed since;
        but Label Studio's API is the truth: ``read_at`` says when it began to list these annotations, and revives
        those deleted before.
        """
        newest = {each.id: each for each in sorted(annotations, key=lambda each: each.updated_at)}
        stored = {
            row.id: row
            for ids in chunks(list(newest))
            for row in self._connection.execute(_WITH_IDS, {"project_id": project_id, "ids": ids})
        }
        changed = [each for each in newest.values() if _is_news(each, stored.get(each.id), read_at)]
        replace(self._connection, annotation_table, [_annotation_columns(project_id, each) for each in changed])
        return len(changed)

    def delete(self, project_id: int, annotation_ids: Sequence[int], deleted_at: datetime) -> int:
        """Mark annotations as deleted, known or not, so that late events cannot revive them.

        Label Studio's clock may be ahead of ours: no annotation counts as deleted before its last change.

        Returns:
            How many live annotations were deleted.
        """
        n_live = 0
        for ids in chunks(annotation_ids):
            these = update(annotation_table).where(
                annotation_table.c.project_id == project_id, annotation_table.c.id.in_(ids)
            )
            self._connection.execute(
                these.where(annotation_table.c.deleted_at < deleted_at).values(deleted_at=deleted_at)
            )
            last = case((annotation_table.c.updated_at > deleted_at, annotation_table.c.updated_at), else_=deleted_at)
            live = these.where(annotation_table.c.deleted_at.is_(None)).values(deleted_at=last)
            n_live += self._connection.execute(live).rowcount
            self._connection.execute(
                insert(self._connection.dialect.name, annotation_table).on_conflict_do_nothing(),
                [_tombstone_columns(project_id, annotation_id, deleted_at) for annotation_id in ids],
            )
        return n_live

    def all(self, project_id: int) -> list[Annotation]:
        """Return all live annotations of tasks that are known, by id."""
        statement = (
            select(*_COLUMNS)
            .join(
                task_table,
                (task_table.c.project_id == annotation_table.c.project_id)
                & (task_table.c.id == annotation_table.c.task_id),
            )
            .where(annotation_table.c.project_id == project_id, annotation_table.c.deleted_at.is_(None))
            .order_by(annotation_table.c.id)
        )
        return [_annotation(row) for row in self._connection.execute(statement)]


_COLUMNS = (
    annotation_table.c.id,
    annotation_table.c.task_id,
    annotation_table.c.class_names,
    annotation_table.c.updated_at,
    annotation_table.c.ground_truth,
    annotation_table.c.annotator_id,
)


# What every event executes: to put a statement together takes longer than to execute it.
_WITH_IDS = select(*_COLUMNS, annotation_table.c.deleted_at).where(
    annotation_table.c.project_id == bindparam("project_id"),
    annotation_table.c.id.in_(bindparam("ids", expanding=True)),
)


def _annotation(row: AnyRow) -> Annotation:
    annotation_id, task_id, class_names, updated_at, ground_truth, annotator_id = row[:6]
    return Annotation(
        id=annotation_id,
        task_id=task_id,
        class_names=class_names,
        updated_at=updated_at,
        ground_truth=ground_truth,
        annotator_id=annotator_id,
    )


def _is_news(incoming: Annotation, stored: AnyRow | None, read_at: datetime | None) -> bool:
    if stored is None:
        return True
    if stored.deleted_at is not None:
        seen_since = read_at is not None and stored.deleted_at < read_at
        return bool(seen_since or incoming.updated_at > stored.deleted_at)
    return incoming.updated_at >= stored.updated_at and incoming != _annotation(stored)


def _annotation_columns(project_id: int, noun: Annotation) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "id": noun.id,
        "task_id": noun.task_id,
        "class_names": noun.class_names,
        "updated_at": noun.updated_at,
        "ground_truth": noun.ground_truth,
        "annotator_id": noun.annotator_id,
        "deleted_at": None,
    }


def _tombstone_columns(project_id: int, annotation_id: int, deleted_at: datetime) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "id": annotation_id,
        "class_names": (),
        "ground_truth": False,
        "deleted_at": deleted_at,
    }
