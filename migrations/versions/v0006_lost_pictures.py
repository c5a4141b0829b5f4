"""The hash of a picture that was lost and is rendered again, so that the new one can be held against it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; workers of the older version go on, since they never write it."""
    op.add_column("jobs", sa.Column("lost_sha256", sa.String(64), nullable=True))
