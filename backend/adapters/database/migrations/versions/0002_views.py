"""Views kept in Label Studio, and which tasks were drawn at random."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table of views and the mark of random draws."""
    op.create_table(
        "kept_view",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("label_studio_id", sa.BigInteger(), nullable=False),
        sa.Column("task_ids", sa.JSON(), nullable=False),
        sa.Column("previous_task_ids", sa.JSON(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="kept_view_project"),
        sa.PrimaryKeyConstraint("project_id", "kind"),
    )
    op.add_column("task", sa.Column("drawn_at_random", sa.Boolean(), server_default=sa.false(), nullable=False))
