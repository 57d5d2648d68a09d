"""Runs, shards, parts and locks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("day", sa.Date),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        sa.Column("summary", sa.JSON),
    )
    op.create_table(
        "shards",
        sa.Column("plan_id", sa.Text, primary_key=True),
        sa.Column("shard_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("answers", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", _TIME),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("expired", sa.Integer, nullable=False),
        sa.Column("finished_at", _TIME),
    )
    op.create_index("shards_to_take", "shards", ["plan_id", "status", "lease_until"])
    op.create_table(
        "parts",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("plan_id", sa.Text, nullable=False),
        sa.Column("shard_id", sa.Integer, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("added_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["plan_id", "shard_id"], ["shards.plan_id", "shards.shard_id"]),
    )
    op.create_index("parts_of_a_shard", "parts", ["plan_id", "shard_id"])
    op.create_table(
        "locks",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.Column("lease_until", _TIME, nullable=False),
    )
