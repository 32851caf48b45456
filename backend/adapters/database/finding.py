"""What a request for suggestions needs to know, in as few statements as can be."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, bindparam, select

from backend.adapters.database.projects import PROJECT, is_meant
from backend.adapters.database.quick_query import DriverConnection, QuickQuery
from backend.adapters.database.tables import project_table, task_table, version_table
from backend.adapters.database.tasks import TASK, find_tasks
from backend.adapters.database.versions import IS_ACTIVE, VERSION
from backend.domain import ProjectIdentity
from backend.ports import Found

NO_TASK = -1


def find(connection: DriverConnection, identity: ProjectIdentity, task_ids: Sequence[int]) -> Found | None:
    """Return a project, its active version and the known ones among these tasks; nothing where it is not known.

    Mostly one task is asked for, so one comes with the project and its version. With each statement the driver lets
    other threads have the interpreter several times, and those of many requests then stand in each other's way.
    """
    which = {"label_studio_id": identity.label_studio_id, "task_id": task_ids[0] if task_ids else NO_TASK}
    for project, active, task in _WITH_ONE_TASK.run(connection, which):
        if is_meant(project, identity):
            some = [task] if task else []
            tasks = find_tasks(connection, project.id, task_ids) if len(task_ids) > 1 else some
            return Found(project=project, active=active, tasks=tuple(tasks))
    return None


_ACTIVE_VERSION = and_(version_table.c.project_id == project_table.c.id, IS_ACTIVE)
_THE_TASK = and_(task_table.c.project_id == project_table.c.id, task_table.c.id == bindparam("task_id"))
_WITH_ONE_TASK = QuickQuery(
    select(project_table)
    .outerjoin(version_table, _ACTIVE_VERSION)
    .outerjoin(task_table, _THE_TASK)
    .where(project_table.c.label_studio_id == bindparam("label_studio_id"))
    .order_by(project_table.c.created_stamp.desc()),
    PROJECT,
    VERSION,
    TASK,
)
