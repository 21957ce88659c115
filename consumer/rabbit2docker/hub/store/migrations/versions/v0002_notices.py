"""Columns for the notice of an accepted build, and for the time of its next try."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, which are empty for builds that are already stored."""
    with op.batch_alter_table("r2d_builds") as table:
        table.add_column(sa.Column("notice", sa.Text))
        table.add_column(sa.Column("retry_at", sa.BigInteger))


def downgrade() -> None:
    """Remove the columns."""
    with op.batch_alter_table("r2d_builds") as table:
        table.drop_column("retry_at")
        table.drop_column("notice")
