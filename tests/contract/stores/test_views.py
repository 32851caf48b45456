"""What is remembered of views and of random draws, whichever database holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.domain import KeptView, Project, Task, ViewKind
from backend.ports import Database

pytestmark = pytest.mark.usefixtures("project")

VIEW = KeptView(kind=ViewKind.LABEL_NEXT, label_studio_id=7, task_ids=frozenset({3, 1, 2}))


def test_a_view_that_was_never_made(database: Database) -> None:
    with database.snapshot() as stores:
        assert stores.views.get(5, ViewKind.LABEL_NEXT) is None


def test_a_view_is_kept_as_it_was_saved_last(database: Database) -> None:
    changed = replace(VIEW, task_ids=frozenset(), previous_task_ids=VIEW.task_ids, released=True)
    for view in (VIEW, changed):
        with database.transaction() as stores:
            stores.views.save(5, view)
        with database.snapshot() as stores:
            assert stores.views.get(5, ViewKind.LABEL_NEXT) == view


def test_kinds_and_projects_have_views_of_their_own(database: Database, project: Project) -> None:
    with database.transaction() as stores:
        other = stores.projects.resolve(replace(project.identity, label_studio_id=6))
        stores.views.save(5, VIEW)
    with database.snapshot() as stores:
        assert stores.views.get(5, ViewKind.CHECK_LABELS) is None
        assert stores.views.get(other.id, ViewKind.LABEL_NEXT) is None


def test_random_draws_are_remembered_as_long_as_the_image(database: Database) -> None:
    tasks = [Task(id=number, image_url=f"/data/upload/{number}.jpg") for number in (1, 2)]
    with database.transaction() as stores:
        stores.tasks.upsert(5, tasks)
        stores.tasks.record_drawn(5, [2])
    with database.transaction() as stores:
        stores.tasks.upsert(5, tasks)
        assert [task.drawn_at_random for task in stores.tasks.all(5)] == [False, True]
        stores.tasks.upsert(5, [Task(id=2, image_url="/data/upload/other.jpg")])
        assert [task.drawn_at_random for task in stores.tasks.all(5)] == [False, False]
