"""Table of the requests that belong to a batch."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table. Batches that ended before are not known."""
    op.create_table(
        "r2d_batch_requests",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("size", sa.Integer),
        sa.Column("build_id", sa.Text, sa.ForeignKey("r2d_builds.id", ondelete="CASCADE"), nullable=False),
        sa.Column("answered_at", sa.BigInteger, nullable=False),
    )
    op.create_index("r2d_batch_requests_by_batch", "r2d_batch_requests", ["tenant", "batch"])
    op.create_index("r2d_batch_requests_by_build", "r2d_batch_requests", ["build_id"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("r2d_batch_requests")
