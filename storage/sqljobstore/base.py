"""What all parts of the SQL job store share: the tables, rows to records, the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Update, literal_column, select, update

from storage import rows
from storage.database import Database
from storage.errors import BadInputError
from storage.jobstore import ADD_CHUNK
from storage.parameters import JobParameters
from storage.records import Image, Job, JobStatus, Submission, SubmissionState, Worker, WorkerState
from storage.served import read_served

JOBS, SUBMISSIONS, IMAGES = rows.JOBS, rows.SUBMISSIONS, rows.IMAGES
WORKERS, META, TUNINGS, HOOKS = rows.WORKERS, rows.META, rows.TUNINGS, rows.HOOKS

# Seconds between two chunks: whoever waits for SQLite's writer looks every 0.01 s, and would never get it.
BREATH = 0.02
CHOSEN_LATER = ("num_inference_steps", "guidance_scale", "width", "height", "sampler", "schedule")


class SqlBase:
    """Holds the open database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        """Close all connections."""
        self.database.db_engine.dispose()

    def _in_chunks(
        self, change: Update, where: list[ColumnElement[bool]], *, seconds: float = math.inf
    ) -> int:
        """Apply `change` to the jobs that match, ADD_CHUNK a commit, and count them.

        Until none is left, or no chunk is begun after `seconds`.
        """
        # Rows that somebody else changes now are left to the next chunk, not waited for (PostgreSQL only).
        # In the order of an index, or PostgreSQL would look for each chunk from the table's start on.
        found = select(JOBS.c.id).where(*where).order_by(JOBS.c.status)
        chunk = found.limit(ADD_CHUNK).with_for_update(skip_locked=True)
        if not self.database.is_sqlite:
            # Or PostgreSQL might choose more than once; SQLite counts no rows behind a WITH.
            chunk = select(chunk.cte("chunk").c.id)
        some = change.where(JOBS.c.id.in_(chunk))
        left = found.limit(1)
        total, until = 0, time.monotonic() + seconds
        while True:
            with self.database.write() as connection:
                changed = connection.execute(some).rowcount
                over = changed < ADD_CHUNK and connection.execute(left).first() is None
            total += changed
            if over or time.monotonic() >= until:
                return total
            time.sleep(BREATH if self.database.is_sqlite else 0)  # SQLite has one writer at a time

    def _sweep(self, submission: str, *, seconds: float = math.inf) -> int:
        """Cancel what a cancelled submission still has to do; return how many jobs."""
        cancelled = (
            select(SUBMISSIONS.c.id)
            .where(SUBMISSIONS.c.id == submission, SUBMISSIONS.c.state == SubmissionState.CANCELLED)
            .exists()
        )  # checked in each chunk: a retry may reopen the submission half-way
        end = update(JOBS).values(status=JobStatus.CANCELLED.value, finished_at=now())
        where = [JOBS.c.submission == submission, status_is(JobStatus.WAITING, JobStatus.QUEUED), cancelled]
        return self._in_chunks(end, where, seconds=seconds)


def now() -> datetime:
    """The time that goes into rows."""
    return datetime.now(UTC)


def status_is(*statuses: JobStatus) -> ColumnElement[bool]:
    """Compare with literals, not parameters: only so does SQLite use the partial indices."""
    literals: list[ColumnElement[str]] = [literal_column(f"'{status.value}'") for status in statuses]
    return JOBS.c.status == literals[0] if len(literals) == 1 else JOBS.c.status.in_(literals)


def submission_row(connection: Connection, submission: str) -> RowMapping:
    """Read the row of a submission that is named by its whole id; BadInputError if there is none."""
    query = select(SUBMISSIONS).where(SUBMISSIONS.c.id == storable(submission))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise BadInputError(f"There is no submission {submission!r}; see `promptmill list`.")
    return row


def storable(text: str) -> str:
    """Replace what no database keeps: NUL, and halves of surrogate pairs (file names can hold them)."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def to_submission(row: RowMapping) -> Submission:
    """Make a record of a submissions row."""
    fields = (
        "id",
        "seq",
        "name",
        "created_at",
        "source",
        "model",
        "priority",
        "weight",
        "max_running",
        "total",
        "idempotency_key",
        "note",
        "content_hash",
        "reuse",
    )
    return Submission(**{name: row[name] for name in fields}, state=SubmissionState(row["state"]))


def to_parameters(row: RowMapping) -> JobParameters:
    """Make the parameters of a jobs row."""
    fields = ("prompt", "negative_prompt", "seed", "options", "extra", *CHOSEN_LATER)
    return JobParameters(**{name: row[name] for name in fields})


def to_job(row: RowMapping, image: Image | None = None, progress: float | None = None) -> Job:
    """Make a record of a jobs row."""
    fields = (
        "id", "submission", "index", "attempt", "failures", "suspect", "incarnation", "not_before",
        "created_at", "queued_at", "started_at", "finished_at", "warnings", "error_type", "error_message",
        "traceback", "lost_sha256",
    )  # fmt: skip
    return Job(
        **{name: row[name] for name in fields},
        status=JobStatus(row["status"]),
        parameters=to_parameters(row),
        image=image,
        progress=progress,
    )


def to_image(row: Mapping[str, Any]) -> Image:
    """Make a record of an images row."""
    fields = (
        "key", "file_sha256", "pixel_sha256", "bytes", "format", "seconds", "numerics", "fingerprint",
        "copied_from",
    )  # fmt: skip
    return Image(**{name: row[name] for name in fields})


def to_worker(row: RowMapping) -> Worker:
    """Make a record of a workers row."""
    values = {str(name): value for name, value in row.items()}
    values["state"] = WorkerState(values["state"])
    values["models"] = read_served(values["models"])
    return Worker(**values)
