"""The models of a worker that serves several."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; a worker of the older version leaves it empty: it serves the one in `model`."""
    op.add_column("workers", sa.Column("models", sa.JSON(), nullable=True))
