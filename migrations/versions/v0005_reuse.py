"""Pictures are found by what determined them, so that another submission can take them over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add three columns and an index; earlier pictures are not found, a running older worker renders all."""
    op.add_column("submissions", sa.Column("reuse", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("images", sa.Column("fingerprint", sa.String(64), nullable=True))
    op.add_column("images", sa.Column("copied_from", sa.Text(), nullable=True))
    op.create_index("ix_images_fingerprint", "images", ["fingerprint"])
