"""What `worker drain` asks for, and how many lanes are in use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns; a worker of the older version goes on and does not hear `worker drain`."""
    op.add_column("workers", sa.Column("drain_timeout", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("lanes_used", sa.Integer(), server_default="0", nullable=False))
