"""Tables for builds, requests, events, logs and rate limits."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _of_build() -> "sa.Column[str]":
    return sa.Column(
        "build_id", sa.Text, sa.ForeignKey("r2d_builds.id", ondelete="CASCADE"), primary_key=True
    )


def upgrade() -> None:
    """Create the first tables."""
    _make_builds()
    _make_requests()
    _make_logs()
    _make_limits()


def downgrade() -> None:
    """Remove all tables, those that refer to others first."""
    for name in (
        "r2d_positions",
        "r2d_rate_limit_hits",
        "r2d_chunks",
        "r2d_logs",
        "r2d_events",
        "r2d_requesters",
        "r2d_requests",
        "r2d_builds",
    ):
        op.drop_table(name)


def _make_builds() -> None:
    op.create_table(
        "r2d_builds",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("spec", sa.Text),
        sa.Column("requester", sa.Text),
        sa.Column("options", sa.Text),
        sa.Column("requested_at", sa.BigInteger),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("last_event_at", sa.BigInteger, nullable=False),
        sa.Column("build_name", sa.Text),
        sa.Column("repo_url", sa.Text),
        sa.Column("resolved_ref", sa.Text),
        sa.Column("image", sa.Text),
        sa.Column("digest", sa.Text),
        sa.Column("size", sa.BigInteger),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress_key", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("rejection", sa.Text),
    )
    op.create_index("r2d_builds_by_time", "r2d_builds", ["tenant", "requested_at", "id"])
    op.create_index("r2d_builds_by_state", "r2d_builds", ["tenant", "state", "requested_at", "id"])
    op.create_index("r2d_builds_by_end", "r2d_builds", ["tenant", "ended_at"])


def _make_requests() -> None:
    op.create_table(
        "r2d_requests",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("own_id", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("requester", sa.Text),
        sa.Column("options", sa.Text),
        sa.Column("requested_at", sa.BigInteger),
        sa.Column("accepted_at", sa.BigInteger),
        sa.Column("accepted", sa.Text),
    )
    op.create_index("r2d_requests_by_own_id", "r2d_requests", ["own_id"])
    op.create_index("r2d_requests_by_build", "r2d_requests", ["build_id"])
    op.create_table("r2d_requesters", _of_build(), sa.Column("name", sa.Text, primary_key=True))
    op.create_index("r2d_requesters_by_name", "r2d_requesters", ["name", "build_id"])


def _make_logs() -> None:
    op.create_table(
        "r2d_events",
        _of_build(),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "r2d_logs",
        _of_build(),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("head_bytes", sa.BigInteger, nullable=False),
        sa.Column("tail_bytes", sa.BigInteger, nullable=False),
        sa.Column("cut_first", sa.BigInteger),
        sa.Column("cut_last", sa.BigInteger),
    )
    op.create_table(
        "r2d_chunks",
        _of_build(),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("last", sa.BigInteger, primary_key=True),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("lines", sa.Text, nullable=False),
    )


def _make_limits() -> None:
    op.create_table(
        "r2d_rate_limit_hits",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("requester", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
    op.create_index("r2d_rate_limit_hits_by_who", "r2d_rate_limit_hits", ["tenant", "requester", "at"])
    op.create_index("r2d_rate_limit_hits_by_until", "r2d_rate_limit_hits", ["until"])
    op.create_table(
        "r2d_positions",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("moment", sa.BigInteger, nullable=False),
    )
