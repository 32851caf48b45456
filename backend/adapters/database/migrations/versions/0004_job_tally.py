"""How many jobs ended how, and after how long."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table of counts."""
    op.create_table(
        "job_tally",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bound_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("n_jobs", sa.BigInteger(), nullable=False),
        sa.Column("total_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "status", "bound_s"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("job_tally")
