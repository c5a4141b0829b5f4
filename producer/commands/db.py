"""`promptmill db upgrade`."""

from __future__ import annotations

import click

from producer.cli import LazyGroup
from producer.output import remark
from producer.session import Session, pass_session

_COMMANDS = {"upgrade": ("producer.commands.db:upgrade", "Bring the database to this version's schema.")}


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

    A SQLite file is copied first. Stop workers of older versions before; they refuse the new schema.
    """
    from storage.database import upgrade as upgrade_schema  # noqa: PLC0415  (SQLAlchemy takes 0.3 s to import)

    remark(upgrade_schema(session.settings))
