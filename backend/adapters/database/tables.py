"""The tables: every invariant that a constraint or an index can hold is held here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC with microseconds, the same from every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Turn any aware datetime into UTC: SQLite stores the clock's face only, as text that sorts by time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: only aware datetimes are stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give back what SQLite tells without and PostgreSQL with the session's time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Names(TypeDecorator[tuple[str, ...]]):
    """A tuple of strings as a JSON array; as text, because PostgreSQL cannot compare its JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Encode always in the same way, so that equal tuples are equal texts."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:  # noqa: ARG002
        """Decode each text once: a hundred thousand annotations share a few labels."""
        return None if value is None else _decoded_names(value)


@lru_cache(maxsize=4096)
def _decoded_names(encoded: str) -> tuple[str, ...]:
    return tuple(json.loads(encoded))


metadata = MetaData()

project_table = Table(
    "project",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("label_studio_id", BigInteger, nullable=False),
    Column("created_stamp", BigInteger, nullable=False),
    Column("title", Text, nullable=False),
    Column("label_config", JSON, nullable=False),
    Column("backbone_digest", String(64)),
    Column("pushed_version", Text),
    Column("problems", Names, nullable=False),
    Column("event_at", UtcDateTime),
    Column("predict_at", UtcDateTime),
    Column("synced_at", UtcDateTime),
    Column("last_version_number", Integer, nullable=False),
    UniqueConstraint("label_studio_id", "created_stamp", name="project_identity"),
)

task_table = Table(
    "task",
    metadata,
    Column("project_id", BigInteger, ForeignKey("project.id", name="task_project"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("image_url", Text),
    Column("image_digest", String(64)),
    Column("image_problem", Text),
    Column("backbone_digest", String(64)),
    Column("pushed_version", Text),
    Column("drawn_at_random", Boolean, nullable=False, server_default=false()),
    Index("task_backbone", "project_id", "backbone_digest"),
    Index(
        "task_with_problem",
        "project_id",
        "id",
        sqlite_where=text("image_problem IS NOT NULL"),
        postgresql_where=text("image_problem IS NOT NULL"),
    ),
)

# A deleted annotation stays as a tombstone: ``deleted_at`` set, and of one that was never seen nothing else.
# ``task_id`` refers to no row: an annotation may come before its task.
annotation_table = Table(
    "annotation",
    metadata,
    Column("project_id", BigInteger, ForeignKey("project.id", name="annotation_project"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("task_id", BigInteger),
    Column("class_names", Names, nullable=False),
    Column("updated_at", UtcDateTime),
    Column("ground_truth", Boolean, nullable=False),
    Column("annotator_id", BigInteger),
    Column("deleted_at", UtcDateTime),
    Index("annotation_task", "project_id", "task_id"),
)

job_table = Table(
    "job",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("project_id", BigInteger, ForeignKey("project.id", name="job_project"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("run_after", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("lease_until", UtcDateTime),
    Column("worker", Text),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("reason", Text),
    Index("job_of_project", "project_id", "id"),
    Index(
        "job_one_queued",
        "project_id",
        "kind",
        unique=True,
        sqlite_where=text("status = 'queued'"),
        postgresql_where=text("status = 'queued'"),
    ),
    Index(
        "job_one_running",
        "project_id",
        "kind",
        unique=True,
        sqlite_where=text("status = 'running'"),
        postgresql_where=text("status = 'running'"),
    ),
    # An id that was pruned is never given again: somebody may still ask for it.
    sqlite_autoincrement=True,
)

# Counts of jobs that ended, which outlive the rows of the jobs; see ``backend.domain.JobTally``.
job_tally_table = Table(
    "job_tally",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("status", String(16), primary_key=True),
    Column("bound_s", Double, primary_key=True, autoincrement=False),
    Column("n_jobs", BigInteger, nullable=False),
    Column("total_s", Double, nullable=False),
)

version_table = Table(
    "version",
    metadata,
    Column("project_id", BigInteger, ForeignKey("project.id", name="version_project"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("n_labels", Integer, nullable=False),
    Column("n_validation", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("class_names", Names, nullable=False),
    Column("backbone_digest", String(64), nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("reason", Text, nullable=False),
    UniqueConstraint("project_id", "name", name="version_name"),
    Index(
        "version_one_active",
        "project_id",
        unique=True,
        sqlite_where=text("status = 'active'"),
        postgresql_where=text("status = 'active'"),
    ),
)

kept_view_table = Table(
    "kept_view",
    metadata,
    Column("project_id", BigInteger, ForeignKey("project.id", name="kept_view_project"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("label_studio_id", BigInteger, nullable=False),
    Column("task_ids", JSON, nullable=False),
    Column("previous_task_ids", JSON, nullable=False),
    Column("released", Boolean, nullable=False),
)

backbone_table = Table(
    "backbone",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("categories", Names, nullable=False),
)
