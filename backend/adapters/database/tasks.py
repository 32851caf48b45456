"""Tasks in SQL: the replica of what Label Studio holds, and what Tandem knows of each image.

What changes is decided here and not in SQL: the one writer at a time has read the rows, so nobody else can have
changed them, and a reconciliation that finds everything as it was writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, delete, func, or_, select, update

from backend.adapters.database.quick_query import DriverConnection, QuickQuery, Reader
from backend.adapters.database.statements import AnyRow, chunks, replace
from backend.adapters.database.tables import annotation_table, task_table
from backend.domain import Task


class SqlTaskStore:
    """Tasks on one connection; see ``backend.ports.TaskStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upsert(self, project_id: int, tasks: Sequence[Task]) -> int:
        """Store ``id`` and ``image_url`` of each task and return how many were new or changed.

        A changed ``image_url`` clears what was known of the old image.
        """
        wanted = {each.id: each.image_url for each in tasks}
        stored = {
            row.id: row.image_url
            for ids in chunks(list(wanted))
            for row in self._connection.execute(_URLS_WITH_IDS, {"project_id": project_id, "ids": ids})
        }
        changed = [
            {
                "project_id": project_id,
                "id": task_id,
                "image_url": image_url,
                "image_digest": None,
                "image_problem": None,
                "backbone_digest": None,
                "pushed_version": None,
                "drawn_at_random": False,
            }
            for task_id, image_url in wanted.items()
            if task_id not in stored or stored[task_id] != image_url
        ]
        replace(self._connection, task_table, changed)
        return len(changed)

    def delete(self, project_id: int, task_ids: Sequence[int]) -> int:
        """Remove tasks and their annotations; unknown ids are ignored. Return how many tasks were removed.

        The annotations stay as deleted since they were last changed, so that an event about them that comes late
        does not bring them back, while a new annotation under a reused id counts.
        """
        removed = 0
        for ids in chunks(task_ids):
            self._connection.execute(
                update(annotation_table)
                .where(
                    annotation_table.c.project_id == project_id,
                    annotation_table.c.task_id.in_(ids),
                    annotation_table.c.deleted_at.is_(None),
                )
                .values(deleted_at=annotation_table.c.updated_at)
            )
            these = self._connection.execute(
                delete(task_table).where(task_table.c.project_id == project_id, task_table.c.id.in_(ids))
            )
            removed += these.rowcount
        return removed

    def get(self, project_id: int, task_ids: Sequence[int]) -> list[Task]:
        """Return the known ones among these tasks, by id."""
        return find_tasks(self._connection, project_id, task_ids)

    def all(self, project_id: int) -> list[Task]:
        """Return all tasks of a project, by id."""
        return self._select(project_id)

    def to_embed(self, project_id: int, backbone_digest: str | None, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks with an image but no features of this backbone; labelled tasks first.

        Tasks whose image has a problem are left out. Without a digest: tasks without any features.
        """
        labelled = task_table.c.id.in_(
            select(annotation_table.c.task_id).where(
                annotation_table.c.project_id == project_id,
                annotation_table.c.deleted_at.is_(None),
                annotation_table.c.class_names != (),
            )
        )
        statement = (
            select(*_COLUMNS)
            .where(
                task_table.c.project_id == project_id,
                task_table.c.image_url.is_not(None),
                task_table.c.image_problem.is_(None),
                _has_no_features(backbone_digest),
            )
            .order_by(labelled.desc(), task_table.c.id)
            .limit(limit)
        )
        return [_task(row) for row in self._connection.execute(statement)]

    def record_image(self, project_id: int, task: Task) -> None:
        """Store digest, problem and backbone digest of the task's image, if the task still has that ``image_url``."""
        which = {"of_project": project_id, "of_task": task.id, "of_image": task.image_url}
        what = {
            "image_digest": task.image_digest,
            "image_problem": task.image_problem,
            "backbone_digest": task.backbone_digest,
        }
        self._connection.execute(_RECORD_IMAGE, which | what)

    def forgive_problems(self, project_id: int) -> int:
        """Clear the image problems of a project, so that its images are tried again; return how many."""
        statement = (
            update(task_table)
            .where(task_table.c.project_id == project_id, task_table.c.image_problem.is_not(None))
            .values(image_problem=None)
        )
        return self._connection.execute(statement).rowcount

    def record_pushed(self, project_id: int, task_ids: Sequence[int], version: str) -> None:
        """Store that Label Studio holds this version's suggestion for these tasks."""
        for ids in chunks(task_ids):
            these = update(task_table).where(task_table.c.project_id == project_id, task_table.c.id.in_(ids))
            self._connection.execute(these.values(pushed_version=version))

    def forget_pushed(self, project_id: int) -> None:
        """Store that Label Studio holds no suggestion of ours for any task."""
        pushed = update(task_table).where(
            task_table.c.project_id == project_id, task_table.c.pushed_version.is_not(None)
        )
        self._connection.execute(pushed.values(pushed_version=None))

    def record_drawn(self, project_id: int, task_ids: Sequence[int]) -> None:
        """Store that chance alone chose these tasks to be labelled."""
        for ids in chunks(task_ids):
            these = update(task_table).where(task_table.c.project_id == project_id, task_table.c.id.in_(ids))
            self._connection.execute(these.values(drawn_at_random=True))

    def count(self, project_id: int) -> int:
        """Return the number of tasks."""
        return self._count(project_id)

    def count_embedded(self, project_id: int, backbone_digest: str | None) -> int:
        """Return the number of tasks with features of this backbone; none has features of no backbone."""
        return (
            0 if backbone_digest is None else self._count(project_id, task_table.c.backbone_digest == backbone_digest)
        )

    def count_problems(self, project_id: int) -> int:
        """Return the number of tasks whose image has a problem."""
        return self._count(project_id, task_table.c.image_problem.is_not(None))

    def problems(self, project_id: int, limit: int) -> list[Task]:
        """Return up to ``limit`` tasks whose image has a problem, by id."""
        return self._select(project_id, task_table.c.image_problem.is_not(None), limit=limit)

    def _select(self, project_id: int, *conditions: ColumnElement[bool], limit: int | None = None) -> list[Task]:
        statement = (
            select(*_COLUMNS)
            .where(task_table.c.project_id == project_id, *conditions)
            .order_by(task_table.c.id)
            .limit(limit)
        )
        return [_task(row) for row in self._connection.execute(statement)]

    def _count(self, project_id: int, *conditions: ColumnElement[bool]) -> int:
        statement = (
            select(func.count()).select_from(task_table).where(task_table.c.project_id == project_id, *conditions)
        )
        return self._connection.execute(statement).scalar_one()


_COLUMNS = (
    task_table.c.id,
    task_table.c.image_url,
    task_table.c.image_digest,
    task_table.c.image_problem,
    task_table.c.backbone_digest,
    task_table.c.pushed_version,
    task_table.c.drawn_at_random,
)

_THESE = (task_table.c.project_id == bindparam("project_id"), task_table.c.id.in_(bindparam("ids", expanding=True)))
_URLS_WITH_IDS = select(task_table.c.id, task_table.c.image_url).where(*_THESE)
_RECORD_IMAGE = (
    update(task_table)
    .where(
        task_table.c.project_id == bindparam("of_project"),
        task_table.c.id == bindparam("of_task"),
        task_table.c.image_url == bindparam("of_image"),
    )
    .values(
        {
            column: bindparam(column.name)
            for column in (task_table.c.image_digest, task_table.c.image_problem, task_table.c.backbone_digest)
        }
    )
)


def _task(row: AnyRow) -> Task:
    task_id, image_url, image_digest, image_problem, backbone_digest, pushed_version, drawn_at_random = row
    return Task(
        id=task_id,
        image_url=image_url,
        image_digest=image_digest,
        image_problem=image_problem,
        backbone_digest=backbone_digest,
        pushed_version=pushed_version,
        drawn_at_random=drawn_at_random,
    )


TASK = Reader(_COLUMNS, _task, n_kept=0)


def find_tasks(connection: DriverConnection, project_id: int, task_ids: Sequence[int]) -> list[Task]:
    """Return the known ones among these tasks, by id."""
    found: list[Task] = []
    for ids in chunks(task_ids):
        padded = list(ids)
        # The last one again and again, so that there is a statement for each power of two, not for each number of ids.
        padded += padded[-1:] * (_next_power_of_two(len(padded)) - len(padded))
        parameters = {f"id_{number}": task_id for number, task_id in enumerate(padded)}
        found += [task for (task,) in _with_ids(len(padded)).run(connection, {"project_id": project_id, **parameters})]
    return sorted(found, key=lambda each: each.id)


@cache
def _with_ids(n_ids: int) -> QuickQuery:
    ids: list[BindParameter[int]] = [bindparam(f"id_{number}") for number in range(n_ids)]
    these = task_table.c.project_id == bindparam("project_id"), task_table.c.id.in_(ids)
    return QuickQuery(select(task_table).where(*these), TASK)


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _has_no_features(backbone_digest: str | None) -> ColumnElement[bool]:
    has_none = task_table.c.backbone_digest.is_(None)
    return has_none if backbone_digest is None else or_(has_none, task_table.c.backbone_digest != backbone_digest)
