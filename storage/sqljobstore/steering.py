"""Cancel, pause, retry: each changes one row at once and sweeps the jobs in chunks behind it."""

from __future__ import annotations

import math
import time
from typing import Any

from sqlalchemy import Connection, select, update

from storage.errors import BadInputError
from storage.records import JobStatus, Submission, SubmissionState, being_pruned
from storage.sqljobstore.base import (
    JOBS,
    SUBMISSIONS,
    SqlBase,
    status_is,
    storable,
    submission_row,
    to_submission,
)
from storage.sqljobstore.submitting import reopen


class Steering(SqlBase):
    """Change what becomes of a submission."""

    def adjust(
        self,
        submission: str,
        *,
        priority: int | None = None,
        weight: float | None = None,
        max_running: int | None = None,
    ) -> Submission:
        """See `JobStore.adjust`."""
        values: dict[str, Any] = {"priority": priority, "weight": weight, "max_running": max_running}
        given = {name: value for name, value in values.items() if value is not None}
        if max_running == 0:
            given["max_running"] = None
        with self.database.write(durable=True) as connection:
            row = submission_row(connection, submission)
            if not given:
                return to_submission(row)
            change = update(SUBMISSIONS).where(SUBMISSIONS.c.seq == row["seq"]).values(given)
            return to_submission(connection.execute(change.returning(SUBMISSIONS)).mappings().one())

    def cancel(self, submission: str) -> Submission:
        """See `JobStore.cancel`."""
        with self.database.write(durable=True) as connection:
            return _set_state(connection, submission, SubmissionState.CANCELLED, note=None)

    def sweep_cancelled(self, submission: str | None = None, *, seconds: float = math.inf) -> int:
        """See `JobStore.sweep_cancelled`."""
        until = time.monotonic() + seconds
        swept = 0
        for one in [submission] if submission else self._cancelled_with_jobs():
            swept += self._sweep(one, seconds=until - time.monotonic())
            if time.monotonic() >= until:
                break
        return swept

    def pause(self, submission: str, *, note: str | None = None) -> Submission:
        """See `JobStore.pause`."""
        with self.database.write(durable=True) as connection:
            state = submission_row(connection, submission)["state"]
            if state not in (SubmissionState.OPEN, SubmissionState.PAUSED):
                raise BadInputError(f"Submission {submission} is {state} and cannot be paused.")
            paused = _set_state(connection, submission, SubmissionState.PAUSED, note=note)
            back = update(JOBS).where(JOBS.c.submission == submission, status_is(JobStatus.QUEUED))
            connection.execute(back.values(status=JobStatus.WAITING.value, queued_at=None))
            return paused

    def retry(self, submission: str, *, index: int | None = None) -> int:
        """See `JobStore.retry`."""
        with self.database.read() as connection:
            row = submission_row(connection, submission)
        if row["state"] == SubmissionState.PRUNING:
            raise BadInputError(being_pruned(submission))
        if (
            row["state"] == SubmissionState.CANCELLED and not row["total"]
        ):  # only what was ever open has a total
            raise BadInputError(
                f"Submission {submission} was cancelled before it was complete; submit the list again."
            )
        self.sweep_cancelled(submission)  # jobs that a killed cancel left behind come back as well
        ended = [JOBS.c.submission == submission, status_is(JobStatus.FAILED, JobStatus.CANCELLED)]
        if index is not None:
            ended.append(JOBS.c.index == index)
        again = update(JOBS).values(
            status=JobStatus.WAITING.value, failures=0, suspect=False, not_before=None, finished_at=None,
            error_type=None, error_message=None, traceback=None,
        )  # fmt: skip
        # A cancelled submission is reopened first, or a sweep would cancel again what comes back.
        self._reopen(submission, SubmissionState.CANCELLED)
        count = self._in_chunks(again, ended)
        if count:
            self._reopen(submission, SubmissionState.OPEN, SubmissionState.PAUSED)
        return count

    def _reopen(self, submission: str, *states: SubmissionState) -> None:
        with self.database.write(durable=True) as connection:
            row = submission_row(connection, submission)
            if row["state"] in states:
                reopen(connection, row)

    def _cancelled_with_jobs(self) -> list[str]:
        pending = (
            select(JOBS.c.id)
            .where(JOBS.c.submission == SUBMISSIONS.c.id, status_is(JobStatus.WAITING, JobStatus.QUEUED))
            .correlate(SUBMISSIONS)
            .exists()
        )
        query = select(SUBMISSIONS.c.id).where(SUBMISSIONS.c.state == SubmissionState.CANCELLED, pending)
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())


def _set_state(
    connection: Connection, submission: str, state: SubmissionState, *, note: str | None
) -> Submission:
    row = submission_row(connection, submission)
    if row["state"] == SubmissionState.PRUNING:
        raise BadInputError(being_pruned(submission))
    values = {"state": state.value, "note": None if note is None else storable(note)}
    change = update(SUBMISSIONS).where(SUBMISSIONS.c.seq == row["seq"]).values(values)
    return to_submission(connection.execute(change.returning(SUBMISSIONS)).mappings().one())
