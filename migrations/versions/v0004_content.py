"""What a submission asks for, as a hash, so that the same list is found again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column and its index; earlier submissions are not found."""
    op.add_column("submissions", sa.Column("content_hash", sa.String(64), nullable=True))
    op.create_index("ix_submissions_content_hash", "submissions", ["content_hash"])
