"""Alembic's environment: `storage.database.upgrade` hands in the connection."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from storage.rows import METADATA

UPGRADE_LOCK = 0x70726F6E  # of PostgreSQL; the one next to it is dispatch's


def run() -> None:
    """Run the migrations in one transaction on the connection that was handed in."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        render_as_batch=True,
        on_version_apply=lambda **step: context.config.attributes["applied"].append(step["step"]),
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":  # of two at once the second finds nothing to do
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
        context.run_migrations()
    connection.commit()


run()
