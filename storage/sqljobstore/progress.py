"""How far a submission is: what `status` reads, in a time that hardly grows with the number of jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal_column, or_, select

from storage.records import JobStatus, Submission, SubmissionState, WorkerState, no_live_worker
from storage.sqljobstore.base import IMAGES, JOBS, WORKERS, now, status_is

RATE_WINDOW = 30.0  # seconds over which images/s is measured
FEW = 10_000  # jobs of one status that are counted at once
ALIVE = (WorkerState.STARTING.value, WorkerState.READY.value, WorkerState.DRAINING.value)


def count_jobs(connection: Connection, submission: str, *, total: int) -> dict[JobStatus, int]:
    """Count a submission's jobs by status, all at one moment; every status is present.

    The largest number follows from the others, so that a million jobs which all wait are not read.

    Args:
        connection: in a transaction.
        submission: its id.
        total: how many jobs it has; 0 while nobody knows.
    """
    most = FEW
    while total:
        found = _count_up_to(connection, submission, most)
        many = [status for status, count in found.items() if count > most]
        if len(many) <= 1:
            return found | {status: total - sum(found.values()) + found[status] for status in many}
        most *= 4
    query = select(JOBS.c.status, func.count()).where(JOBS.c.submission == submission).group_by(JOBS.c.status)
    counted = {JobStatus(status): count for status, count in connection.execute(query)}
    return {status: counted.get(status, 0) for status in JobStatus}


def _count_up_to(connection: Connection, submission: str, most: int) -> dict[JobStatus, int]:
    """Count up to one more than `most` of each status; at one moment, or a job on its way could be missed."""

    def counted(status: JobStatus) -> ColumnElement[int]:
        one: Select[Any] = select(literal_column("1")).where(
            JOBS.c.submission == submission, status_is(status)
        )
        return select(func.count()).select_from(one.limit(most + 1).subquery()).scalar_subquery()

    counts = connection.execute(select(*map(counted, JobStatus))).one()
    return dict(zip(JobStatus, counts, strict=True))


def images_per_second(connection: Connection, submission: str, *, ended: bool) -> float:
    """Return how fast a submission's pictures came in the last seconds; 0 where nobody can say."""
    moment = now()
    query = (
        select(func.count(), func.min(IMAGES.c.created_at), func.max(IMAGES.c.created_at))
        .select_from(IMAGES.join(JOBS, JOBS.c.id == IMAGES.c.job))
        .where(IMAGES.c.created_at > moment - timedelta(seconds=RATE_WINDOW), JOBS.c.submission == submission)
    )
    count, first, last = connection.execute(query).one()
    if count < 2:  # noqa: PLR2004  (one picture has no rate)
        return 0.0
    # The first picture of the window marks its start, so it does not count.
    until = last if ended else moment  # what has ended does not get slower by being looked at
    return float((count - 1) / max((until - first).total_seconds(), 0.001))


def waiting_because(
    connection: Connection, submission: Submission, counts: dict[JobStatus, int], lease: float
) -> str | None:
    """Say why an unfinished submission does not move; None if it does, or may at any moment."""
    if submission.state is SubmissionState.LOADING:
        return "its jobs are still being submitted"
    if submission.state is SubmissionState.PAUSED:
        return f"paused: {submission.note}" if submission.note else "paused"
    reason = _workers_say(connection, submission.model, lease)
    if reason or counts[JobStatus.RUNNING] or counts[JobStatus.QUEUED]:
        return reason
    waiting = (JOBS.c.submission == submission.id, status_is(JobStatus.WAITING))
    # Usually the first one that is looked at is due: the earliest is looked for only where none is.
    due = or_(JOBS.c.not_before.is_(None), JOBS.c.not_before <= now())
    if connection.execute(select(JOBS.c.id).where(*waiting, due).limit(1)).first() is not None:
        return None
    until = connection.execute(select(func.min(JOBS.c.not_before)).where(*waiting)).scalar()
    return (
        None if until is None else f"backing off after a failure until {until.isoformat(timespec='seconds')}"
    )


def _workers_say(connection: Connection, model: str, lease: float) -> str | None:
    query = select(WORKERS).where(WORKERS.c.model == model, WORKERS.c.state.in_(ALIVE))
    rows = connection.execute(query).mappings()
    alive = [row for row in rows if (now() - row["beat_at"]).total_seconds() < lease]
    if not alive:
        return no_live_worker(model)
    if all(row["state"] == WorkerState.STARTING for row in alive):
        return "the worker is loading its model"
    return next((str(row["note"]) for row in alive if row["note"]), None)
