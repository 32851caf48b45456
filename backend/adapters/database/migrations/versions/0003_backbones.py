"""What the classifiers of pretrained backbones tell apart."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table of backbones."""
    op.create_table(
        "backbone",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("categories", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("backbone")
