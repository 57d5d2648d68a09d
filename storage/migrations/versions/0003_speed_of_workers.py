"""How fast a worker's machine is beside the one that the prices describe."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Workers of before are taken to be of that very machine."""
    op.add_column("workers", sa.Column("speed", sa.Float, nullable=False, server_default="1"))
