"""Views of Label Studio's Data Manager, filtered to chosen tasks.

The Data Manager cannot filter by a list of ids: its server takes ``in_list``, but its page then never comes up, and a
regular expression is replaced by nothing. One "equal" for each id, joined by "or", works in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from backend.domain import TaskView
from backend.label_studio.answers import parse_answer
from backend.label_studio.connection import Call, Connection
from backend.label_studio.fields import Id, Mapped, Payload, Text, parse_each

VIEWS_PATH = "/api/dm/views/"
COLUMNS_PATH = "/api/dm/columns"
ID_COLUMN = "filter:tasks:id"
SCORE = "tasks:predictions_score"
NO_TASK = 0
ALL_TASKS_TITLE = "Default"
SHOWN_COLUMNS = frozenset({"id", "data", "annotations_results", "predictions_results", "predictions_score"})
"""What tells whether a label fits an image; the image is one of the columns of ``data``."""


class FilterPayload(Payload):
    """One condition on tasks."""

    filter: str
    operator: str
    value: object = None


class FiltersPayload(Payload):
    """What a view is filtered by."""

    conjunction: str
    items: list[FilterPayload]


class ViewDataPayload(Payload):
    """What a view shows; columns and the like are nobody's business here."""

    title: Text = ""
    filters: FiltersPayload | None = None


class ViewPayload(Payload):
    """A view as the API tells it."""

    id: Id
    data: ViewDataPayload = Field(default_factory=ViewDataPayload)


class RawViewPayload(Payload):
    """A view with everything that has to be sent back when it is changed."""

    id: Id
    data: Mapped = Field(default_factory=dict)


class ColumnPayload(Payload):
    """A column that views can show; those of the task's data have a parent."""

    id: Text
    parent: Text = ""
    visibility_defaults: Mapped = Field(default_factory=dict)


class DataManager:
    """The views of the Data Manager; see ``backend.ports.LabelStudioGateway``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def views(self, project: int) -> list[TaskView]:
        """Return a project's views from left to right."""
        return [
            TaskView(id=view.id, title=view.data.title, task_ids=decode_filters(view.data.filters))
            for view in parse_each(ViewPayload, self._views(project))
        ]

    def create_view(self, project: int, title: str, task_ids: Sequence[int], *, least_sure_first: bool) -> int:
        """Make a view of these tasks, the least sure prediction first or the surest, and return its id."""
        if not self._views(project):
            # The page shows one of all tasks only while there is no other.
            self._create({"project": project, "data": {"title": ALL_TASKS_TITLE}})
        data = {
            "title": title,
            "ordering": [SCORE if least_sure_first else f"-{SCORE}"],
            "hiddenColumns": self._hidden_columns(project),
        }
        return self._create({"project": project, "data": {**data, "filters": encode_filters(task_ids)}})

    def update_view(self, project: int, view_id: int, task_ids: Sequence[int]) -> None:
        """Make a view show these tasks; its title, order, columns and the like stay."""
        current = next(
            (view.data for view in parse_each(RawViewPayload, self._views(project)) if view.id == view_id), {}
        )
        body = {"project": project, "data": {**current, "filters": encode_filters(task_ids)}}
        self._connection.run(Call(method="PATCH", path=f"{VIEWS_PATH}{view_id}/", body=body))

    def _views(self, project: int) -> list[object]:
        answer = self._connection.run(Call(method="GET", path=VIEWS_PATH, query={"project": str(project)}))
        return answer if isinstance(answer, list) else []

    def _hidden_columns(self, project: int) -> dict[str, list[str]]:
        """Return the columns that a list of tasks, and the one beside an open task, do not show."""
        answer = self._connection.run(Call(method="GET", path=COLUMNS_PATH, query={"project": str(project)}))
        listed = answer.get("columns") if isinstance(answer, dict) else None
        columns = parse_each(ColumnPayload, listed if isinstance(listed, list) else [])
        names = {column.id: f"tasks:{column.parent and column.parent + '.'}{column.id}" for column in columns}
        beside = [names[column.id] for column in columns if not column.visibility_defaults.get("labeling", True)]
        in_list = [names[column.id] for column in columns if not {column.id, column.parent} & SHOWN_COLUMNS]
        return {"explore": in_list, "labeling": beside}

    def _create(self, body: dict[str, Any]) -> int:
        answer = self._connection.run(Call(method="POST", path=VIEWS_PATH, body=body, repeatable=False))
        return parse_answer(RawViewPayload, answer).id


def encode_filters(task_ids: Sequence[int]) -> dict[str, Any]:
    """Return the filters of a view of these tasks; without any it shows none, where no filter would show all."""
    items = [
        {"filter": ID_COLUMN, "operator": "equal", "type": "Number", "value": task_id}
        for task_id in task_ids or (NO_TASK,)
    ]
    return {"conjunction": "or", "items": items}


def decode_filters(filters: FiltersPayload | None) -> frozenset[int] | None:
    """Return the tasks that a view is filtered to, or ``None`` where it is filtered by anything else."""
    if filters is None or not filters.items:
        return None
    if filters.conjunction != "or" and len(filters.items) > 1:
        return None
    values = [item.value for item in filters.items if (item.filter, item.operator) == (ID_COLUMN, "equal")]
    ids = frozenset(int(value) for value in values if isinstance(value, int | float))
    return ids - {NO_TASK} if len(values) == len(filters.items) == len(ids) else None
