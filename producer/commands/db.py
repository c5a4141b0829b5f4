"""`promptmill db upgrade` and `db vacuum`."""

from __future__ import annotations

import click

from producer.cli import LazyGroup
from producer.output import remark, size_of
from producer.session import Session, pass_session

_COMMANDS = {
    "upgrade": ("producer.commands.db:upgrade", "Bring the database to this version's schema."),
    "vacuum": ("producer.commands.db:vacuum", "Give the room of removed rows back to the disk."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def db() -> None:
    """Look after the database."""


@click.command(
    epilog="""\b
Examples:
  promptmill db upgrade
"""
)
@pass_session
def upgrade(session: Session) -> None:
    """Bring the database to this version's schema.

    A SQLite file is copied first. Workers of older versions go on, unless the new schema asks for newer ones:
    those finish what they render, and end.
    """
    from storage.database import upgrade as upgrade_schema  # noqa: PLC0415  (SQLAlchemy takes 0.3 s to import)

    remark(upgrade_schema(session.settings))


@click.command(
    epilog="""\b
Examples:
  promptmill db vacuum
"""
)
@pass_session
def vacuum(session: Session) -> None:
    """Give the room of removed rows back to the disk.

    `prune` does that by itself, but for a SQLite file that an earlier promptmill made: this writes such a
    file anew, once, while no worker runs, with as much free disk as the file has bytes. PostgreSQL keeps
    the room for new rows, by its autovacuum; there this only makes it look for room now.
    """
    room = session.jobs.compact(whole=True)
    remark(f"The database has {size_of(room.after)}, and had {size_of(room.before)}.")
