"""What the first worker of a kind measured, for all others of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from storage.fingerprint import hash_of
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

    def forget_tunings(self) -> int:
        """See `JobStore.forget_tunings`."""
        with self.database.write() as connection:
            return connection.execute(delete(TUNINGS)).rowcount
