"""Keeping pictures: what a submission holds, how it is removed, how a lost picture is rendered again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Text, cast, delete, func, select, update

from storage.errors import BadInputError
from storage.inputs import inputs_of
from storage.records import (
    UNFINISHED,
    Holdings,
    Job,
    JobStatus,
    Submission,
    SubmissionState,
    being_pruned,
)
from storage.sqljobstore.base import (
    HOOKS,
    IMAGES,
    JOBS,
    SUBMISSIONS,
    SqlBase,
    now,
    status_is,
    submission_row,
    to_submission,
)
from storage.sqljobstore.submitting import reopen


class Keeping(SqlBase):
    """Remove submissions, and bring jobs back whose picture was lost."""

    def holdings(self, submission: str) -> Holdings:
        """See `Keeping.holdings`."""
        mine = JOBS.c.submission == submission
        pictures = select(func.count(), func.coalesce(func.sum(IMAGES.c.bytes), 0))
        with self.database.read() as connection:
            submission_row(connection, submission)
            jobs = connection.execute(select(func.count()).select_from(JOBS).where(mine)).scalar_one()
            joined = pictures.join_from(IMAGES, JOBS, JOBS.c.id == IMAGES.c.job).where(mine)
            count, size = connection.execute(joined).one()
            return Holdings(jobs=jobs, pictures=count, bytes=int(size))

    def check_prunable(self, submission: str) -> None:
        """See `Keeping.check_prunable`."""
        with self.database.read() as connection:
            _check_prunable(connection, submission)

    def begin_pruning(self, submission: str) -> Submission:
        """See `Keeping.begin_pruning`."""
        with self.database.write(durable=True) as connection:
            row = _check_prunable(connection, submission)
            change = update(SUBMISSIONS).where(SUBMISSIONS.c.seq == row["seq"])
            change = change.values(state=SubmissionState.PRUNING.value, note=None)
            pruned = to_submission(connection.execute(change.returning(SUBMISSIONS)).mappings().one())
        # A claim on such a job is void from here on: whoever finishes it now deletes his own file.
        self._in_chunks(update(JOBS).values(_cancelled()), _unfinished(submission))
        return pruned

    def lowest_index(self, submission: str) -> int | None:
        """See `Keeping.lowest_index`."""
        query = select(func.min(JOBS.c.index)).where(JOBS.c.submission == submission)
        with self.database.read() as connection:
            lowest: int | None = connection.execute(query).scalar()
            return lowest

    def prune_jobs(self, submission: str, *, first: int, last: int) -> int:
        """See `Keeping.prune_jobs`."""
        chosen = (JOBS.c.submission == submission, JOBS.c.index.between(first, last))
        with self.database.write() as connection:
            _check_pruning(connection, submission)
            connection.execute(delete(IMAGES).where(IMAGES.c.job.in_(select(JOBS.c.id).where(*chosen))))
            return connection.execute(delete(JOBS).where(*chosen)).rowcount

    def end_pruning(self, submission: str) -> None:
        """See `Keeping.end_pruning`."""
        with self.database.write(durable=True) as connection:
            there = select(SUBMISSIONS.c.seq).where(SUBMISSIONS.c.id == submission)
            if connection.execute(there).first() is None:
                return
            _check_pruning(connection, submission)
            left = select(JOBS.c.id).where(JOBS.c.submission == submission).limit(1)
            if connection.execute(left).first() is not None:
                raise BadInputError(being_pruned(submission))
            connection.execute(delete(HOOKS).where(HOOKS.c.submission == submission))
            connection.execute(delete(SUBMISSIONS).where(SUBMISSIONS.c.id == submission))

    def inputs_used(self) -> set[str]:
        """See `Keeping.inputs_used`."""
        written = cast(JOBS.c.options, Text)
        with_inputs = select(written).where(written.like('%_image":%')).distinct()
        with self.database.read() as connection:
            found = connection.execute(with_inputs).scalars()
            return {sha256 for text in found for sha256 in inputs_of(json.loads(text)).values()}

    def render_again(self, submission: str, jobs: Sequence[Job]) -> list[int]:
        """See `Keeping.render_again`."""
        with self.database.read() as connection:
            cancelled = submission_row(connection, submission)["state"] == SubmissionState.CANCELLED
        if cancelled:  # what the cancel has not swept yet must not come back with the others
            self._sweep(submission)
        with self.database.write(durable=True) as connection:
            row = submission_row(connection, submission)
            if row["state"] == SubmissionState.PRUNING:
                raise BadInputError(being_pruned(submission))
            if row["state"] == SubmissionState.PAUSED:
                raise BadInputError(
                    f"Submission {submission} is paused; `promptmill resume {submission}` first."
                )
            brought = [job.index for job in jobs if _bring_back(connection, job)]
            if brought:
                reopen(connection, row)
            return brought


def _unfinished(submission: str) -> list[ColumnElement[bool]]:
    return [JOBS.c.submission == submission, status_is(*UNFINISHED)]


def _check_prunable(connection: Connection, submission: str) -> RowMapping:
    row = submission_row(connection, submission)
    if row["state"] == SubmissionState.LOADING:
        raise BadInputError(
            f"Submission {submission} is not complete; drop it with `promptmill cancel {submission}`, then "
            f"prune it."
        )
    given_up = row["state"] in (SubmissionState.CANCELLED, SubmissionState.PRUNING)
    # In the order of an index, or PostgreSQL would look through the table for what is not there.
    left = select(JOBS.c.id).where(*_unfinished(submission)).order_by(JOBS.c.status).limit(1)
    if not given_up and connection.execute(left).first() is not None:
        raise BadInputError(
            f"Submission {submission} is not finished; wait for it, or cancel it with "
            f"`promptmill cancel {submission}` first."
        )
    return row


def _cancelled() -> dict[str, Any]:
    return {"status": JobStatus.CANCELLED.value, "finished_at": now()}


def _bring_back(connection: Connection, job: Job) -> bool:
    """Let a job wait for another picture, unless it is no longer what it was when it was read."""
    mine = (JOBS.c.id == job.id, JOBS.c.submission == job.submission, JOBS.c.attempt == job.attempt)
    again = update(JOBS).where(*mine, status_is(JobStatus.SUCCEEDED))
    values = {
        "status": JobStatus.WAITING.value, "failures": 0, "suspect": False, "not_before": None,
        "queued_at": None, "finished_at": None,
    }  # fmt: skip
    lost = {"lost_sha256": job.image.file_sha256} if job.image else {}
    if not connection.execute(again.values(values | lost)).rowcount:
        return False
    connection.execute(delete(IMAGES).where(IMAGES.c.job == job.id))
    return True


def _check_pruning(connection: Connection, submission: str) -> None:
    state = submission_row(connection, submission)["state"]
    if state != SubmissionState.PRUNING:
        raise BadInputError(f"Submission {submission} is {state}; only what is being pruned loses its rows.")
