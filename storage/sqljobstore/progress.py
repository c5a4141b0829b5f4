"""How far a submission is: what `status` reads, in a time that hardly grows with the number of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal_column, or_, select

from storage.records import (
    UNFINISHED,
    JobStatus,
    Status,
    Submission,
    SubmissionState,
    WorkerState,
    no_live_worker,
)
from storage.served import served_by, served_model
from storage.sqljobstore.base import IMAGES, JOBS, WORKERS, now, status_is, to_worker
from storage.sqljobstore.claiming import BACKOFF_LIMIT

RATE_WINDOW = 30.0  # seconds over which images/s is measured
FEW = 10_000  # jobs of one status that are counted at once
ALIVE = (WorkerState.STARTING.value, WorkerState.READY.value, WorkerState.DRAINING.value)


def status_of(
    connection: Connection, submission: Submission, lease: float, *, rate_when_done: bool = True
) -> Status:
    """Return how far a submission is, as `JobStore.status` says it."""
    whole = submission.state is not SubmissionState.PRUNING  # or else its rows are fewer
    counts = count_jobs(connection, submission.id, total=submission.total if whole else 0)
    unfinished = sum(counts[status] for status in UNFINISHED)
    rate = 0.0
    if unfinished or rate_when_done:
        rate = images_per_second(connection, submission.id, ended=not unfinished)
    return Status(
        submission=submission,
        counts=counts,
        images_per_second=rate,
        eta_seconds=unfinished / rate if rate and unfinished else None,
        waiting_because=waiting_because(connection, submission, counts, lease) if unfinished else None,
    )


def few_jobs(connection: Connection, submission: str, statuses: Sequence[JobStatus]) -> bool:
    """Whether a submission has at most FEW jobs of some statuses."""
    return sum(_counted(connection, submission, statuses, most=FEW).values()) <= FEW


def count_jobs(connection: Connection, submission: str, *, total: int) -> dict[JobStatus, int]:
    """Count a submission's jobs by status, all at one moment; every status is present.

    The number of the most frequent one follows from the others, so that a million jobs which all wait are not
    read. Where several are frequent, one of them does.

    Args:
        connection: in a transaction.
        submission: its id.
        total: how many jobs it has; 0 while nobody knows.
    """
    if not total:
        return _counted(connection, submission, JobStatus)
    found = _counted(connection, submission, JobStatus, most=FEW)
    many = [status for status, count in found.items() if count > FEW]
    if not many:
        return found
    others = [status for status in JobStatus if status is not many[0]]
    if len(many) > 1:
        found = _counted(connection, submission, others)
    left = total - sum(found[status] for status in others)
    return {status: found[status] if status in others else left for status in JobStatus}


def _counted(
    connection: Connection, submission: str, statuses: Iterable[JobStatus], *, most: int | None = None
) -> dict[JobStatus, int]:
    """Count in one statement, or a job on its way could be missed: up to one more than `most` of each."""

    def counted(status: JobStatus) -> ColumnElement[int]:
        jobs: Select[Any] = select(literal_column("1")).where(
            JOBS.c.submission == submission, status_is(status)
        )
        limited = jobs if most is None else jobs.limit(most + 1)
        return select(func.count()).select_from(limited.subquery()).scalar_subquery()

    statuses = list(statuses)
    counts = connection.execute(select(*map(counted, statuses))).one()
    return dict(zip(statuses, counts, strict=True))


def images_per_second(connection: Connection, submission: str, *, ended: bool) -> float:
    """Return how fast a submission's pictures came in the last seconds; 0 where nobody can say."""
    moment = now()
    # Not a join: SQLite would begin with all the jobs of the submission.
    its = select(JOBS.c.submission).where(JOBS.c.id == IMAGES.c.job).correlate(IMAGES).scalar_subquery()
    query = select(func.count(), func.min(IMAGES.c.created_at), func.max(IMAGES.c.created_at)).where(
        IMAGES.c.created_at > moment - timedelta(seconds=RATE_WINDOW), its == submission
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
    moment, never_later = now(), now() + timedelta(seconds=BACKOFF_LIMIT)  # as dispatch judges
    due = or_(JOBS.c.not_before.is_(None), JOBS.c.not_before <= moment, JOBS.c.not_before > never_later)
    if connection.execute(select(JOBS.c.id).where(*waiting, due).limit(1)).first() is not None:
        return None
    until = connection.execute(select(func.min(JOBS.c.not_before)).where(*waiting)).scalar()
    return (
        None if until is None else f"backing off after a failure until {until.isoformat(timespec='seconds')}"
    )


def _workers_say(connection: Connection, model: str, lease: float) -> str | None:
    query = select(WORKERS).where(WORKERS.c.state.in_(ALIVE))
    workers = [to_worker(row) for row in connection.execute(query).mappings()]
    alive = [worker for worker in workers if (now() - worker.beat_at).total_seconds() < lease]
    serving = [worker for worker in alive if served_model(worker, model)]
    if not serving:
        known = [served for worker in alive for served in served_by(worker) if served.name == model]
        return next((served.problem for served in known if served.problem), no_live_worker(model))
    if all(worker.state is WorkerState.STARTING for worker in serving):
        return "the worker is loading its model"
    if all(worker.model != model for worker in serving):
        return f"the worker renders with model {serving[0].model} now, and takes turns"
    return next((worker.note for worker in serving if worker.note), None)
