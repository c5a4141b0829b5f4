"""Exit hooks: which URL is to be told of which submission, and who does it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, RowMapping, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from storage.hooks import BACKOFF_BASE, BACKOFF_LIMIT, HELD_FOR, MAX_TRIES, Hook
from storage.records import UNFINISHED, SubmissionState
from storage.sqljobstore.base import HOOKS, JOBS, SUBMISSIONS, SqlBase, now, status_is, storable

# Nobody backs off for longer: a later moment was written by a clock that was wrong.
NEVER_LATER = timedelta(seconds=max(BACKOFF_LIMIT, HELD_FOR))
UNHEARD_OF = "whoever told it last never said what came of it"
COMPLETE = (SubmissionState.OPEN, SubmissionState.PAUSED, SubmissionState.CANCELLED)


class Telling(SqlBase):
    """Keep hooks, and hand each to one supervisor at a time."""

    def add_hook(self, submission: str, url: str) -> None:
        """See `Telling.add_hook`."""
        values = {"submission": submission, "url": url, "attempts": 0, "not_before": now()}
        there = select(HOOKS.c.id).where(HOOKS.c.submission == submission, HOOKS.c.url == url)
        try:
            with self.database.write(durable=True) as connection:
                if connection.execute(there).first() is None:
                    connection.execute(insert(HOOKS).values(values))
        except IntegrityError:
            return  # somebody else was faster (only PostgreSQL lets two come this far)

    def hooks(self, submission: str) -> list[Hook]:
        """See `Telling.hooks`."""
        query = select(HOOKS).where(HOOKS.c.submission == submission).order_by(HOOKS.c.id)
        with self.database.read() as connection:
            return [_to_hook(row) for row in connection.execute(query).mappings()]

    def take_hook(self) -> Hook | None:
        """See `Telling.take_hook`."""
        while (row := self._due()) is not None:
            if row["attempts"] < MAX_TRIES:
                return self._take(row)
            self._give_up(row)
        return None

    def _due(self) -> RowMapping | None:
        """Return the hook that has been due for longest."""
        left = (
            select(JOBS.c.id)
            .where(JOBS.c.submission == SUBMISSIONS.c.id, status_is(*UNFINISHED))
            .correlate(SUBMISSIONS)
            .exists()
        )
        done = (SUBMISSIONS.c.state.in_(COMPLETE), ~left)
        found = (
            select(HOOKS)
            .join(SUBMISSIONS, SUBMISSIONS.c.id == HOOKS.c.submission)
            .where(*_is_due(), *done)
            .order_by(HOOKS.c.not_before)
            .limit(1)
        )
        with self.database.read() as connection:
            return connection.execute(found).mappings().one_or_none()

    def _take(self, row: RowMapping) -> Hook | None:
        """Hold a hook, unless somebody was faster."""
        held = {"attempts": HOOKS.c.attempts + 1, "not_before": now() + timedelta(seconds=HELD_FOR)}
        take = update(HOOKS).where(*_still(row), *_is_due()).values(held)
        with self.database.write() as connection:
            taken = connection.execute(take.returning(HOOKS)).mappings().one_or_none()
        return None if taken is None else _to_hook(taken)

    def _give_up(self, row: RowMapping) -> None:
        """End a hook whose last taker never said what came of it."""
        ended = {"ended_at": now(), "error": row["error"] or UNHEARD_OF}
        with self.database.write() as connection:
            connection.execute(update(HOOKS).where(*_still(row), *_is_due()).values(ended))

    def end_hook(self, hook: Hook, *, error: str | None) -> bool:
        """See `Telling.end_hook`."""
        ends = error is None or hook.attempts >= MAX_TRIES
        pause = min(BACKOFF_LIMIT, BACKOFF_BASE * 2.0 ** min(hook.attempts - 1, 16))
        values = {
            "ended_at": now() if ends else None,
            "not_before": now() + timedelta(seconds=pause),
            "error": None if error is None else storable(error),
        }
        # Who took it later, since we were silent, knows better.
        mine = (HOOKS.c.id == hook.id, HOOKS.c.attempts == hook.attempts)
        with self.database.write() as connection:
            connection.execute(update(HOOKS).where(*mine).values(values))
        return ends


def _is_due() -> tuple[ColumnElement[bool], ...]:
    moment = now()
    waited = or_(HOOKS.c.not_before <= moment, HOOKS.c.not_before > moment + NEVER_LATER)
    return HOOKS.c.ended_at.is_(None), waited


def _still(row: RowMapping) -> tuple[ColumnElement[bool], ...]:
    """Nobody has taken it since it was seen."""
    return HOOKS.c.id == row["id"], HOOKS.c.attempts == row["attempts"]


def _to_hook(row: RowMapping) -> Hook:
    fields = ("id", "submission", "url", "attempts", "ended_at", "error")
    return Hook(**{name: row[name] for name in fields})
