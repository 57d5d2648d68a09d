"""The ledger's tables as SQLAlchemy sees them; ``storage/migrations`` makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

REVISION: Final = "0003"
"""The newest migration: what a ledger must be at."""
VERSION_TABLE: Final = "schema_version"


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite, which has no time zones, keeps it as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Aware time to what the driver takes."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """What the driver gives to an aware time."""
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata: Final = MetaData()

runs: Final = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("day", Date),
    Column("params", JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("summary", JSON),
)

shards: Final = Table(
    "shards",
    metadata,
    Column("plan_id", Text, primary_key=True),
    Column("shard_id", Integer, primary_key=True),
    Column("answers", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("owner", Text),
    Column("lease_until", UtcTime),
    Column("fence", BigInteger, nullable=False),
    Column("expired", Integer, nullable=False),
    Column("finished_at", UtcTime),
    Index("shards_to_take", "plan_id", "status", "lease_until"),
)

parts: Final = Table(
    "parts",
    metadata,
    Column("key", Text, primary_key=True),
    Column("plan_id", Text, nullable=False),
    Column("shard_id", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("added_at", UtcTime, nullable=False),
    ForeignKeyConstraint(["plan_id", "shard_id"], ["shards.plan_id", "shards.shard_id"]),
    Index("parts_of_a_shard", "plan_id", "shard_id"),
)

locks: Final = Table(
    "locks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("lease_until", UtcTime, nullable=False),
)

workers: Final = Table(
    "workers",
    metadata,
    Column("worker_id", Text, primary_key=True),
    Column("plan_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("usd_per_hour", Float, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("alive_until", UtcTime, nullable=False),
    Column("booked_s", Float, nullable=False),
    Column("busy_s", Float, nullable=False),
    Column("answers", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("resumed_tokens", BigInteger, nullable=False),
    Column("ended_at", UtcTime),
    Column("end", Text),
    Column("speed", Float, nullable=False),
    Index("workers_of_a_plan", "plan_id"),
)
