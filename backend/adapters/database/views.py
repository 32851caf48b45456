"""The views that Tandem keeps in Label Studio, in SQL."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from backend.adapters.database.tables import kept_view_table
from backend.domain import KeptView, ViewKind


class SqlViewStore:
    """Kept views on one connection; see ``backend.ports.ViewStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, project_id: int, kind: ViewKind) -> KeptView | None:
        """Return the view of this kind, if one was ever made."""
        row = self._connection.execute(
            select(kept_view_table).where(
                kept_view_table.c.project_id == project_id, kept_view_table.c.kind == kind.value
            )
        ).one_or_none()
        if row is None:
            return None
        return KeptView(
            kind=kind,
            label_studio_id=row.label_studio_id,
            task_ids=frozenset(row.task_ids),
            previous_task_ids=frozenset(row.previous_task_ids),
            released=row.released,
        )

    def save(self, project_id: int, view: KeptView) -> None:
        """Store what is known of a view now."""
        key = {"project_id": project_id, "kind": view.kind.value}
        rest = {
            "label_studio_id": view.label_studio_id,
            "task_ids": sorted(view.task_ids),
            "previous_task_ids": sorted(view.previous_task_ids),
            "released": view.released,
        }
        these = update(kept_view_table).where(*(kept_view_table.c[name] == value for name, value in key.items()))
        if not self._connection.execute(these.values(**rest)).rowcount:
            self._connection.execute(insert(kept_view_table).values(**key, **rest))
