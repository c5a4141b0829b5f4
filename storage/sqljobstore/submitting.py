"""Station 2 of a job's path: a prompt list becomes rows, in commits small enough that nobody waits."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage.errors import BadInputError
from storage.jobstore import ADD_CHUNK
from storage.parameters import JobParameters
from storage.records import UNFINISHED, JobStatus, Submission, SubmissionState, being_pruned
from storage.sqljobstore.base import (
    JOBS,
    SUBMISSIONS,
    SqlBase,
    now,
    status_is,
    storable,
    submission_row,
    to_submission,
)
from storage.sqljobstore.behind import Behind

# Crockford's base32: no i, l, o, u, so that an id can be read aloud.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FIELDS = tuple(field.name for field in fields(JobParameters))  # the last two hold JSON
_fields_of = attrgetter(*_FIELDS)
# Those that are the same in all rows of a chunk.
_SAME = ("submission", "status", "attempt", "failures", "suspect", "created_at", "warnings")
_OWN = ("index", *_FIELDS)
_COLUMNS = (*_SAME, *_OWN)
_INDEX = len(_SAME)  # where a row's index stands
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
ROWS_AT_ONCE = 1_000  # of one statement: SQLite takes 32,766 values
Row = tuple[Any, ...]


def new_submission_id() -> str:
    """Draw 8 base32 characters, the first a letter so that no tool takes an id for a number."""
    return secrets.choice(_ALPHABET[10:]) + "".join(secrets.choice(_ALPHABET) for _ in range(7))


class Submitting(SqlBase):
    """Insert submissions and their jobs."""

    def add_submission(
        self,
        *,
        model: str,
        source: str,
        name: str | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        weight: float = 1.0,
        max_running: int | None = None,
        content_hash: str | None = None,
        reuse: bool = False,
    ) -> tuple[Submission, bool]:
        """See `JobStore.add_submission`."""
        if not 0 < weight < math.inf:  # false for NaN as well
            raise BadInputError(f"Weight {weight} is no share; give a number above 0.")
        values = {
            "id": new_submission_id(), "name": None if name is None else storable(name), "created_at": now(),
            "source": storable(source), "model": model, "state": SubmissionState.LOADING.value,
            "priority": priority, "weight": weight, "pass": 0.0, "max_running": max_running,
            "total": 0, "idempotency_key": idempotency_key, "content_hash": content_hash, "reuse": reuse,
            "note": None,
        }  # fmt: skip
        try:
            with self.database.write(durable=True) as connection:
                found = _by_key(connection, idempotency_key)
                if found is not None:
                    return found, False
                row = (
                    connection.execute(insert(SUBMISSIONS).values(values).returning(SUBMISSIONS))
                    .mappings()
                    .one()
                )
                return to_submission(row), True
        except IntegrityError:
            # Another submit with the same key committed first (only PostgreSQL lets two come this far).
            with self.database.read() as connection:
                found = _by_key(connection, idempotency_key)
            if found is None:
                raise
            return found, False

    def add_jobs(self, submission: str, jobs: Iterable[JobParameters], *, first_index: int = 0) -> int:
        """See `JobStore.add_jobs`."""
        remaining = enumerate(jobs, start=first_index)
        with Behind() as writing:
            while chunk := list(islice(remaining, ADD_CHUNK)):
                writing.start(
                    self._add_rows, submission, _job_rows(submission, chunk, self._as_stored(now()))
                )
        with self.database.read() as connection:
            return _job_count(connection, submission)

    def _as_stored(self, moment: datetime) -> Any:
        dialect = self.database.db_engine.dialect
        process = JOBS.c.created_at.type.dialect_impl(dialect).bind_processor(dialect)
        return process(moment) if process else moment

    def _add_rows(self, submission: str, rows: list[Row]) -> None:
        """Commit the rows whose index is not there yet."""
        with self.database.write(durable=True) as connection:
            # On PostgreSQL two submits with one key can come here together: one after the other.
            lock = select(SUBMISSIONS.c.seq).where(SUBMISSIONS.c.id == submission).with_for_update()
            connection.execute(lock)
            state = submission_row(connection, submission)["state"]
            if state != SubmissionState.LOADING:
                raise BadInputError(
                    f"Submission {submission} is {state}; jobs are only added while it is loading."
                )
            span = JOBS.c.index.between(rows[0][_INDEX], rows[-1][_INDEX])
            query = select(JOBS.c.index).where(JOBS.c.submission == submission, span)
            there = set(connection.execute(query).scalars())
            self._insert_rows(connection, [row for row in rows if row[_INDEX] not in there])

    def _insert_rows(self, connection: Connection, rows: list[Row]) -> None:
        """Insert rows with the driver's own bulk call: SQLAlchemy's takes three times as long for a row."""
        if self.database.is_sqlite:
            # Not one by one: in each statement of its own Python would wait for the thread that makes rows.
            for at in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[at : at + ROWS_AT_ONCE]
                own = chain.from_iterable(row[_INDEX:] for row in some)
                connection.exec_driver_sql(_insert_many(len(some)), (*some[0][:_INDEX], *own))
            return
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY jobs ({_NAMES}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def open_submission(self, submission: str) -> Submission:
        """See `JobStore.open_submission`."""
        with self.database.write(durable=True) as connection:
            row = submission_row(connection, submission)
            if row["state"] == SubmissionState.PRUNING:
                raise BadInputError(being_pruned(submission))
            if row["state"] == SubmissionState.CANCELLED:
                raise BadInputError(
                    f"Submission {submission} is cancelled; `promptmill retry {submission}` reopens it."
                )
            if row["state"] == SubmissionState.OPEN:
                return to_submission(row)
            return reopen(connection, row)


def reopen(connection: Connection, row: RowMapping) -> Submission:
    """Set a submission `open`, counted, without note, and in step with the others."""
    others = (
        select(func.min(SUBMISSIONS.c["pass"]))
        .where(SUBMISSIONS.c.model == row["model"], SUBMISSIONS.c.state == SubmissionState.OPEN)
        .where(SUBMISSIONS.c.id != row["id"])
        .where(
            select(JOBS.c.id)
            .where(JOBS.c.submission == SUBMISSIONS.c.id, status_is(*UNFINISHED))
            .correlate(SUBMISSIONS)
            .exists()
        )
    )  # fmt: skip
    # Neither behind the others, which would stop them, nor ahead, where it may have run while it was alone.
    current_pass = connection.execute(others).scalar()
    changed = connection.execute(
        update(SUBMISSIONS)
        .where(SUBMISSIONS.c.id == row["id"])
        .values(
            {
                "state": SubmissionState.OPEN.value,
                "pass": row["pass"] if current_pass is None else current_pass,
                "total": _job_count(connection, row["id"]),
                "note": None,
            }
        )
        .returning(SUBMISSIONS)
    )
    return to_submission(changed.mappings().one())


def _by_key(connection: Connection, key: str | None) -> Submission | None:
    if key is None:
        return None
    row = connection.execute(select(SUBMISSIONS).filter_by(idempotency_key=key)).mappings().one_or_none()
    return to_submission(row) if row else None


def _job_count(connection: Connection, submission: str) -> int:
    return connection.execute(
        select(func.count()).select_from(JOBS).filter_by(submission=submission)
    ).scalar_one()


def _job_rows(submission: str, jobs: list[tuple[int, JobParameters]], created_at: Any) -> list[Row]:
    """Make rows in the order of `_COLUMNS`, of one chunk: what is the same in all of it stands first."""
    same = (submission, JobStatus.WAITING.value, 0, 0, False, created_at, "[]")
    rows = []
    for index, job in jobs:
        *values, options, extra = _fields_of(job)
        rows.append((*same, index, *values, _json(options), _json(extra)))
    return rows


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value) if value else "{}"


@lru_cache(maxsize=2)
def _insert_many(count: int) -> str:
    """Return the statement that inserts so many rows of a chunk; what is the same in all is given once."""
    same, own = (", ".join("?" * len(names)) for names in (_SAME, _OWN))
    rows = ", ".join([f"({own})"] * count)
    return f"INSERT INTO jobs ({_NAMES}) SELECT {same}, * FROM (VALUES {rows})"  # noqa: S608 - our own names
