"""Workers: who bakes a plan, what each may spend and how fast it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text, primary_key=True),
        sa.Column("plan_id", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("usd_per_hour", sa.Float, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("alive_until", _TIME, nullable=False),
        sa.Column("booked_s", sa.Float, nullable=False),
        sa.Column("busy_s", sa.Float, nullable=False),
        sa.Column("answers", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("resumed_tokens", sa.BigInteger, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("end", sa.Text),
    )
    op.create_index("workers_of_a_plan", "workers", ["plan_id"])
