"""Alembic's environment: `storage.database.upgrade` hands in the connection."""

from __future__ import annotations

from alembic import context

from storage.rows import Base


def run() -> None:
    """Run the migrations in one transaction on the connection that was handed in."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


run()
