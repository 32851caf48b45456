"""Projects in SQL."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from backend.adapters.database.quick_query import QuickQuery, Reader
from backend.adapters.database.tables import metadata, project_table
from backend.domain import UNKNOWN_STAMP, LabelConfig, LabelSchema, Project, ProjectIdentity
from backend.errors import NotFound

FIRST_OWN_ID = 1_000_001


class SqlProjectStore:
    """Projects on one connection; see ``backend.ports.ProjectStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def resolve(self, identity: ProjectIdentity) -> Project:
        """Return the project with this identity; make it when it was never seen, which takes a write transaction."""
        known = self.find(identity)
        if known is not None:
            return known
        for unidentified in self._with_same_id(identity):
            if unidentified.identity.created_stamp == UNKNOWN_STAMP:
                identified = replace(unidentified, identity=identity)
                self.save(identified)
                return identified
        made = Project(id=self._free_id(identity.label_studio_id), identity=identity)
        self._connection.execute(insert(project_table).values(**_columns(made), last_version_number=0))
        return made

    def find(self, identity: ProjectIdentity) -> Project | None:
        """Return the project that ``resolve`` would return without having to store anything, if there is one."""
        return next((known for known in self._with_same_id(identity) if is_meant(known, identity)), None)

    def get(self, project_id: int) -> Project:
        """Return a project.

        Raises:
            NotFound: there is none with this id.
        """
        row = self._connection.execute(select(project_table).where(project_table.c.id == project_id)).one_or_none()
        if row is None:
            raise _unknown(project_id)
        return _project(row)

    def all(self) -> list[Project]:
        """Return all projects by id."""
        return [_project(row) for row in self._connection.execute(select(project_table).order_by(project_table.c.id))]

    def save(self, project: Project) -> None:
        """Store all fields of a known project.

        Raises:
            NotFound: there is none with this id.
        """
        statement = update(project_table).where(project_table.c.id == project.id).values(**_columns(project))
        if self._connection.execute(statement).rowcount == 0:
            raise _unknown(project.id)

    def delete(self, project_id: int) -> None:
        """Remove a project with every row that refers to it.

        Raises:
            NotFound: there is none with this id.
        """
        for table in reversed(metadata.sorted_tables):
            if "project_id" in table.c:
                self._connection.execute(delete(table).where(table.c.project_id == project_id))
        if self._connection.execute(delete(project_table).where(project_table.c.id == project_id)).rowcount == 0:
            raise _unknown(project_id)

    def _with_same_id(self, identity: ProjectIdentity) -> list[Project]:
        which = {"label_studio_id": identity.label_studio_id}
        return [project for (project,) in _NEWEST_WITH_SAME_ID.run(self._connection, which)]

    def _free_id(self, label_studio_id: int) -> int:
        taken = self._connection.scalar(select(project_table.c.id).where(project_table.c.id == label_studio_id))
        if taken is None:
            return label_studio_id
        highest = self._connection.scalar(select(func.max(project_table.c.id))) or 0
        return max(FIRST_OWN_ID, highest + 1)


def _unknown(project_id: int) -> NotFound:
    return NotFound(f"there is no project {project_id}: connect it in Label Studio, or see GET /api/projects")


def _columns(noun: Project) -> dict[str, Any]:
    return {
        "id": noun.id,
        "label_studio_id": noun.identity.label_studio_id,
        "created_stamp": noun.identity.created_stamp,
        "title": noun.title,
        "label_config": asdict(noun.label_config),
        "backbone_digest": noun.backbone_digest,
        "pushed_version": noun.pushed_version,
        "problems": noun.problems,
        "event_at": noun.event_at,
        "predict_at": noun.predict_at,
        "synced_at": noun.synced_at,
    }


def _project(row: Row[Any]) -> Project:
    return Project(
        id=row.id,
        identity=ProjectIdentity(label_studio_id=row.label_studio_id, created_stamp=row.created_stamp),
        title=row.title,
        label_config=_label_config(row.label_config),
        backbone_digest=row.backbone_digest,
        pushed_version=row.pushed_version,
        problems=row.problems,
        event_at=row.event_at,
        predict_at=row.predict_at,
        synced_at=row.synced_at,
    )


def _label_config(stored: dict[str, Any]) -> LabelConfig:
    schema = stored["schema"]
    if schema is not None:
        synonyms = tuple(map(tuple, schema.get("synonyms", ())))
        schema = LabelSchema(**{**schema, "class_names": tuple(schema["class_names"]), "synonyms": synonyms})
    return LabelConfig(**{**stored, "schema": schema})


PROJECT = Reader(project_table.c, _project, n_kept=256)

_NEWEST_WITH_SAME_ID = QuickQuery(
    select(project_table)
    .where(project_table.c.label_studio_id == bindparam("label_studio_id"))
    .order_by(project_table.c.created_stamp.desc()),
    PROJECT,
)


def is_meant(project: Project, identity: ProjectIdentity) -> bool:
    """Tell whether an identity with a project's id is the project's; where no more is known of it, it may be any's."""
    return identity.created_stamp in (UNKNOWN_STAMP, project.identity.created_stamp)
