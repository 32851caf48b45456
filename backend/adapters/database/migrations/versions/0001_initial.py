"""Projects, tasks, annotations, jobs and versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "project",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label_studio_id", sa.BigInteger(), nullable=False),
        sa.Column("created_stamp", sa.BigInteger(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("label_config", sa.JSON(), nullable=False),
        sa.Column("backbone_digest", sa.String(length=64), nullable=True),
        sa.Column("pushed_version", sa.Text(), nullable=True),
        sa.Column("problems", sa.Text(), nullable=False),
        sa.Column("event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("predict_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_version_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("label_studio_id", "created_stamp", name="project_identity"),
    )
    op.create_table(
        "annotation",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=True),
        sa.Column("class_names", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ground_truth", sa.Boolean(), nullable=False),
        sa.Column("annotator_id", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="annotation_project"),
        sa.PrimaryKeyConstraint("project_id", "id"),
    )
    op.create_index("annotation_task", "annotation", ["project_id", "task_id"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("run_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="job_project"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("job_of_project", "job", ["project_id", "id"], unique=False)
    op.create_index(
        "job_one_queued",
        "job",
        ["project_id", "kind"],
        unique=True,
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "job_one_running",
        "job",
        ["project_id", "kind"],
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "task",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_url", sa.Text(), nullable=True),
        sa.Column("image_digest", sa.String(length=64), nullable=True),
        sa.Column("image_problem", sa.Text(), nullable=True),
        sa.Column("backbone_digest", sa.String(length=64), nullable=True),
        sa.Column("pushed_version", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="task_project"),
        sa.PrimaryKeyConstraint("project_id", "id"),
    )
    op.create_index("task_backbone", "task", ["project_id", "backbone_digest"], unique=False)
    op.create_index(
        "task_with_problem",
        "task",
        ["project_id", "id"],
        unique=False,
        sqlite_where=sa.text("image_problem IS NOT NULL"),
        postgresql_where=sa.text("image_problem IS NOT NULL"),
    )
    op.create_table(
        "version",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n_labels", sa.Integer(), nullable=False),
        sa.Column("n_validation", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("class_names", sa.Text(), nullable=False),
        sa.Column("backbone_digest", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="version_project"),
        sa.PrimaryKeyConstraint("project_id", "number"),
        sa.UniqueConstraint("project_id", "name", name="version_name"),
    )
    op.create_index(
        "version_one_active",
        "version",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("status = 'active'"),
        postgresql_where=sa.text("status = 'active'"),
    )


def downgrade() -> None:
    """Drop all tables."""
    for table in ("version", "job", "annotation", "task", "project"):
        op.drop_table(table)
