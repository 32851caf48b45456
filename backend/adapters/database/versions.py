"""Model versions in SQL."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, literal_column, or_, select, update

from backend.adapters.database.quick_query import QuickQuery, Reader
from backend.adapters.database.tables import project_table, version_table
from backend.domain import INTERRUPTED, Metrics, ModelVersion, VersionKind, VersionStatus
from backend.errors import Conflict, NotFound


class SqlVersionStore:
    """Model versions on one connection; see ``backend.ports.VersionStore``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def next_number(self, project_id: int) -> int:
        """Reserve and return the next version number of a project; never the same twice.

        Raises:
            NotFound: there is no such project.
        """
        statement = (
            update(project_table)
            .where(project_table.c.id == project_id)
            .values(last_version_number=project_table.c.last_version_number + 1)
            .returning(project_table.c.last_version_number)
        )
        number: int | None = self._connection.scalar(statement)
        if number is None:
            raise NotFound(f"there is no project {project_id} to number a version of")
        return number

    def add(self, version: ModelVersion) -> None:
        """Store a new version; one that was numbered elsewhere raises the project's count to its number."""
        self._connection.execute(insert(version_table).values(**_columns(version)))
        self._connection.execute(
            update(project_table)
            .where(project_table.c.id == version.project_id, project_table.c.last_version_number < version.number)
            .values(last_version_number=version.number)
        )

    def active(self, project_id: int) -> ModelVersion | None:
        """Return the active version, if any."""
        return next((version for (version,) in _ACTIVE.run(self._connection, {"project_id": project_id})), None)

    def get(self, project_id: int, name: str) -> ModelVersion:
        """Return a version by name.

        Raises:
            NotFound: the project has no such version.
        """
        named = _OF_PROJECT.where(version_table.c.name == name)
        # PostgreSQL knows no such text at all.
        row = None if "\0" in name else self._connection.execute(named, {"project_id": project_id}).one_or_none()
        if row is None:
            raise NotFound(f"project {project_id} has no version {name!r}: see GET /api/projects/{project_id}/versions")
        return _version(row)

    def all(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions, newest first."""
        return [_version(row) for row in self._connection.execute(_OF_PROJECT, {"project_id": project_id})]

    def landmarks(self, project_id: int) -> list[ModelVersion]:
        """Return those of a project's versions that say what to train next, newest first: a few among thousands."""
        return [_version(row) for row in self._connection.execute(_LANDMARKS, {"project_id": project_id})]

    def candidates(self, project_id: int) -> list[ModelVersion]:
        """Return a project's versions of which nobody has decided yet what they are worth, newest first."""
        candidates = _OF_PROJECT.where(version_table.c.status == VersionStatus.CANDIDATE)
        return [_version(row) for row in self._connection.execute(candidates, {"project_id": project_id})]

    def activate(self, project_id: int, name: str, reason: str) -> ModelVersion:
        """Make a version the active one, retire the one that was, and return it with its new status.

        Raises:
            NotFound: the project has no such version.
        """
        chosen = self.get(project_id, name)
        self._connection.execute(
            update(version_table)
            .where(version_table.c.project_id == project_id, version_table.c.status == VersionStatus.ACTIVE)
            .values(status=VersionStatus.RETIRED)
        )
        self._mark(chosen, VersionStatus.ACTIVE, reason)
        return self.get(project_id, name)

    def reject(self, project_id: int, name: str, reason: str) -> None:
        """Mark a candidate as rejected.

        Raises:
            NotFound: the project has no such version.
            Conflict: it is or was in use.
        """
        candidate = self.get(project_id, name)
        if candidate.status in (VersionStatus.ACTIVE, VersionStatus.RETIRED):
            raise Conflict(f"version {name} is {candidate.status}: only a candidate can be rejected")
        self._mark(candidate, VersionStatus.REJECTED, reason)

    def _mark(self, known: ModelVersion, status: VersionStatus, reason: str) -> None:
        self._connection.execute(
            update(version_table)
            .where(version_table.c.project_id == known.project_id, version_table.c.number == known.number)
            .values(status=status, reason=reason)
        )


def _columns(noun: ModelVersion) -> dict[str, Any]:
    return {
        "project_id": noun.project_id,
        "number": noun.number,
        "name": noun.name,
        "kind": noun.kind,
        "status": noun.status,
        "created_at": noun.created_at,
        "n_labels": noun.n_labels,
        "n_validation": noun.n_validation,
        "metrics": {name: _to_json(value) for name, value in asdict(noun.metrics).items()},
        "class_names": noun.class_names,
        "backbone_digest": noun.backbone_digest,
        "fingerprint": noun.fingerprint,
        "reason": noun.reason,
    }


def _to_json(value: float) -> float | str:
    """Return what JSON can hold: PostgreSQL refuses NaN and infinity as numbers, ``float`` reads them as words."""
    return value if math.isfinite(value) else str(value)


def _version(row: Row[Any]) -> ModelVersion:
    return ModelVersion(
        project_id=row.project_id,
        number=row.number,
        name=row.name,
        kind=VersionKind(row.kind),
        status=VersionStatus(row.status),
        created_at=row.created_at,
        n_labels=row.n_labels,
        n_validation=row.n_validation,
        metrics=Metrics(**{name: float(value) for name, value in row.metrics.items()}),
        class_names=row.class_names,
        backbone_digest=row.backbone_digest,
        fingerprint=row.fingerprint,
        reason=row.reason,
    )


_OF_PROJECT = (
    select(version_table)
    .where(version_table.c.project_id == bindparam("project_id"))
    .order_by(version_table.c.number.desc())
)

_NUMBERS = select(func.max(version_table.c.number)).where(version_table.c.project_id == bindparam("project_id"))
_WAS_JUDGED = and_(version_table.c.status != VersionStatus.CANDIDATE, version_table.c.reason != INTERRUPTED)
_LANDMARKS = _OF_PROJECT.where(
    or_(
        version_table.c.status == VersionStatus.ACTIVE,
        version_table.c.kind == VersionKind.FINETUNE,
        version_table.c.number.in_(_NUMBERS.where(_WAS_JUDGED)),
        version_table.c.number.in_(_NUMBERS.group_by(version_table.c.backbone_digest)),
    )
)

VERSION = Reader(version_table.c, _version, n_kept=256)
IS_ACTIVE = version_table.c.status == literal_column(f"'{VersionStatus.ACTIVE}'")

_ACTIVE = QuickQuery(
    select(version_table).where(version_table.c.project_id == bindparam("project_id"), IS_ACTIVE), VERSION
)
