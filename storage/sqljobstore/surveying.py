"""How a whole farm is: what `promptmill metrics` asks again and again."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, ScalarSelect, Select, func, literal_column, select

from storage.records import JobStatus, SubmissionState
from storage.sqljobstore import progress
from storage.sqljobstore.base import JOBS, SUBMISSIONS, WORKERS, SqlBase, now, status_is, to_worker
from storage.surveying import FarmView

# What succeeded is the rest of a submission: most jobs of most submissions are never counted.
COUNTED = tuple(status for status in JobStatus if status is not JobStatus.SUCCEEDED)
PENDING = (JobStatus.WAITING, JobStatus.QUEUED)
COMPLETE = (SubmissionState.OPEN, SubmissionState.PAUSED, SubmissionState.CANCELLED)


class Surveying(SqlBase):
    """Answer for all models at once."""

    def survey(self) -> FarmView:
        """See `JobStore.survey`."""
        jobs: Counter[tuple[str, JobStatus]] = Counter()
        oldest: dict[str, datetime] = {}
        with self.database.read() as connection:
            clock = now() if self.database.is_sqlite else connection.execute(select(func.now())).scalar_one()
            for row in connection.execute(_each_submission(progress.FEW)).mappings().all():
                counts = _counts(connection, row)
                jobs.update({(row["model"], status): count for status, count in counts.items()})
                if row["state"] == SubmissionState.OPEN and any(counts[status] for status in PENDING):
                    created = row["created_at"]
                    oldest[row["model"]] = min(created, oldest.get(row["model"], created))
            submissions = {
                (row["model"], SubmissionState(row["state"])): row["count"]
                for row in connection.execute(_BY_STATE).mappings()
            }
            alive = select(WORKERS).where(WORKERS.c.state.in_(progress.ALIVE))
            workers = [to_worker(row) for row in connection.execute(alive).mappings()]
        return FarmView(clock=clock, jobs=dict(jobs), oldest=oldest, submissions=submissions, workers=workers)


def _counts(connection: Connection, row: RowMapping) -> dict[JobStatus, int]:
    """Count one submission's jobs, in another statement only where many of them have not succeeded."""
    found: dict[JobStatus, int] = {status: row[status.value] for status in COUNTED}
    if any(count > progress.FEW for count in found.values()):
        return progress.count_jobs(connection, row["id"], total=row["total"])
    return {**found, JobStatus.SUCCEEDED: row["total"] - sum(found.values())}


def _each_submission(most: int) -> Select[Any]:
    columns = (SUBMISSIONS.c.id, SUBMISSIONS.c.model, SUBMISSIONS.c.state, SUBMISSIONS.c.total)
    counts = [_count(status, most).label(status.value) for status in COUNTED]
    return select(*columns, SUBMISSIONS.c.created_at, *counts).where(
        SUBMISSIONS.c.state.in_(COMPLETE), SUBMISSIONS.c.total > 0
    )


def _count(status: JobStatus, most: int) -> ScalarSelect[int]:
    """Count up to one more than `most` of a submission's jobs."""
    its: Select[Any] = select(literal_column("1")).where(
        JOBS.c.submission == SUBMISSIONS.c.id, status_is(status)
    )
    limited = its.limit(most + 1).correlate(SUBMISSIONS).subquery()
    return select(func.count()).select_from(limited).scalar_subquery()


_BY_STATE = select(SUBMISSIONS.c.model, SUBMISSIONS.c.state, func.count().label("count")).group_by(
    SUBMISSIONS.c.model, SUBMISSIONS.c.state
)
