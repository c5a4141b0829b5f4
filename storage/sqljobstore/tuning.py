"""What the first worker of a kind measured, for all others of its kind; and the database's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from storage.fingerprint import hash_of
from storage.measured import SELF_TEST, Measured
from storage.sqljobstore.base import TUNINGS, SqlBase, now


class Tuning(SqlBase):
    """Look tunings up, and keep new ones."""

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `JobStore.tuning`."""
        with self.database.read() as connection:
            kept = connection.execute(select(TUNINGS.c.tuning).filter_by(key=hash_of(dict(facts)))).scalar()
            return None if kept is None else dict(kept)

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """See `JobStore.keep_tuning`."""
        row = {"key": hash_of(dict(facts)), "facts": dict(facts), "tuning": dict(tuning), "created_at": now()}
        try:
            with self.database.write() as connection:
                connection.execute(insert(TUNINGS).values(row))
        except IntegrityError:  # another worker of this kind was first
            pass
        return self.tuning(facts) or dict(tuning)

    def measured(self) -> list[Measured]:
        """See `JobStore.measured`."""
        query = select(TUNINGS.c.facts, TUNINGS.c.tuning, TUNINGS.c.created_at)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(TUNINGS.c.created_at.desc())).all()
        return [Measured(facts=row.facts, found=row.tuning, created_at=row.created_at) for row in rows]

    def forget_tunings(self) -> int:
        """See `JobStore.forget_tunings`."""
        with self.database.write() as connection:
            rows = connection.execute(select(TUNINGS.c.key, TUNINGS.c.facts)).all()  # a handful
            keys = [row.key for row in rows if SELF_TEST not in row.facts]
            return connection.execute(delete(TUNINGS).where(TUNINGS.c.key.in_(keys))).rowcount

    def clock(self) -> datetime:
        """See `JobStore.clock`."""
        if self.database.is_sqlite:
            return now()
        with self.database.read() as connection:
            told: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return told
