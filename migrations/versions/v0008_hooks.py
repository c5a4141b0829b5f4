"""URLs that are told when a submission is done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage.rows import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; a worker of the older version goes on, and tells nobody."""
    op.create_table(
        "hooks",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        # No foreign key: an older `prune` removes submissions and knows nothing of this table.
        sa.Column("submission", sa.String(8), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hooks")),
        sa.UniqueConstraint("submission", "url", name=op.f("uq_hooks_submission")),
    )
    op.create_index(op.f("ix_hooks_ended_at"), "hooks", ["ended_at"], unique=False)
