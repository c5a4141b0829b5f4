"""How far submissions are: what `status` reads, in a time that hardly grows with the number of jobs.

Many are asked for in as many statements as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, literal_column, or_, select

from storage.records import (
    UNFINISHED,
    JobStatus,
    Status,
    Submission,
    SubmissionState,
    Worker,
    WorkerState,
    no_live_worker,
)
from storage.served import served_by, served_model
from storage.sqljobstore.base import IMAGES, JOBS, SUBMISSIONS, WORKERS, now, status_is, to_worker
from storage.sqljobstore.claiming import BACKOFF_LIMIT

RATE_WINDOW = 30.0  # seconds over which images/s is measured
FEW = 10_000  # jobs of one status that are counted at once
ALIVE = (WorkerState.STARTING.value, WorkerState.READY.value, WorkerState.DRAINING.value)
Counts = dict[JobStatus, int]
_ONE: ColumnElement[int] = literal_column("1")


def status_of(connection: Connection, submission: Submission, lease: float) -> Status:
    """Return how far a submission is, as `JobStore.status` says it."""
    return statuses_of(connection, [submission], lease, rate_when_done=True)[0]


def statuses_of(
    connection: Connection, submissions: Sequence[Submission], lease: float, *, rate_when_done: bool
) -> list[Status]:
    """Return how far submissions are, in the given order; see `JobStore.status`."""
    # While rows are removed the total is no number of rows.
    totals = {one.id: 0 if one.state is SubmissionState.PRUNING else one.total for one in submissions}
    counts = counts_of(connection, totals)
    left = {name: sum(found[status] for status in UNFINISHED) for name, found in counts.items()}
    rates = _rates(connection, {one: count for one, count in left.items() if count or rate_when_done})
    reasons = _reasons(connection, [one for one in submissions if left[one.id]], counts, lease)
    made = []
    for one in submissions:
        rate = rates.get(one.id, 0.0)
        made.append(
            Status(
                submission=one,
                counts=counts[one.id],
                images_per_second=rate,
                eta_seconds=left[one.id] / rate if rate and left[one.id] else None,
                waiting_because=reasons.get(one.id),
            )
        )
    return made


def few_jobs(connection: Connection, submission: str, statuses: Sequence[JobStatus]) -> bool:
    """Whether a submission has at most FEW jobs of some statuses."""
    return sum(_counted(connection, {submission: statuses}, most=FEW)[submission].values()) <= FEW


def count_jobs(connection: Connection, submission: str, *, total: int) -> Counts:
    """Count one submission's jobs as `counts_of` does."""
    return counts_of(connection, {submission: total})[submission]


def counts_of(connection: Connection, totals: Mapping[str, int]) -> dict[str, Counts]:
    """Count submissions' jobs by status, those of each at one moment; every status is present.

    The number of the most frequent one follows from the others, so that a million jobs which all wait are not
    read. Where several are frequent, one of them does.

    Args:
        connection: in a transaction.
        totals: how many jobs each submission has; 0 while nobody knows.
    """
    counts = _counted_up_to_few(connection, totals)
    following: dict[str, JobStatus] = {}
    again: dict[str, list[JobStatus]] = {}
    for submission, found in counts.items():
        many = [status for status in JobStatus if found[status] > FEW]
        if many and totals[submission]:
            following[submission] = many[0]
        if len(many) > 1 or (many and not totals[submission]):
            again[submission] = [one for one in JobStatus if one is not following.get(submission)]
    for submission, exact in (_counted(connection, again) if again else {}).items():
        counts[submission] |= exact
    for submission, status in following.items():
        others = sum(count for one, count in counts[submission].items() if one is not status)
        counts[submission][status] = totals[submission] - others
    return counts


def _counted_up_to_few(connection: Connection, submissions: Iterable[str]) -> dict[str, Counts]:
    """Count in one statement, or a job on its way could be missed: up to one more than FEW of each status."""

    def counted(status: JobStatus) -> ColumnElement[int]:
        jobs = _its_jobs(_ONE, status).limit(FEW + 1)
        return select(func.count()).select_from(jobs.subquery()).scalar_subquery()

    counts = {one: dict.fromkeys(JobStatus, 0) for one in submissions}
    query = select(SUBMISSIONS.c.id, *map(counted, JobStatus)).where(SUBMISSIONS.c.id.in_(list(counts)))
    for submission, *found in connection.execute(query):
        counts[submission] = dict(zip(JobStatus, found, strict=True))
    return counts


def _its_jobs(column: ColumnElement[Any], *statuses: JobStatus) -> Select[Any]:
    """Select something of the jobs of that submission which the statement around this one looks at."""
    jobs = select(column).select_from(JOBS).where(JOBS.c.submission == SUBMISSIONS.c.id)
    return jobs.where(status_is(*statuses)).correlate(SUBMISSIONS)


def _counted(
    connection: Connection, wanted: Mapping[str, Iterable[JobStatus]], *, most: int | None = None
) -> dict[str, Counts]:
    """Count jobs of some statuses of some submissions in one statement: up to one more than `most`."""

    def counted(submission: str, status: JobStatus) -> ColumnElement[int]:
        jobs = select(_ONE).select_from(JOBS).where(JOBS.c.submission == submission, status_is(status))
        limited = jobs if most is None else jobs.limit(most + 1)
        return select(func.count()).select_from(limited.subquery()).scalar_subquery()

    pairs = [(submission, status) for submission, statuses in wanted.items() for status in statuses]
    found = connection.execute(select(*(counted(*pair) for pair in pairs))).one()
    counts: dict[str, Counts] = {submission: {} for submission in wanted}
    for (submission, status), count in zip(pairs, found, strict=True):
        counts[submission][status] = count
    return counts


def _rates(connection: Connection, left: Mapping[str, int]) -> dict[str, float]:
    """Return how fast submissions' pictures came in the last seconds; none where nobody can say.

    Args:
        connection: in a transaction.
        left: how many jobs each has still to do.
    """
    if not left:
        return {}
    moment = now()
    # Not a join: SQLite would begin with all the jobs of the submissions.
    its = select(JOBS.c.submission).where(JOBS.c.id == IMAGES.c.job).correlate(IMAGES).scalar_subquery()
    latest = (
        select(its.label("submission"), IMAGES.c.created_at)
        .where(IMAGES.c.created_at > moment - timedelta(seconds=RATE_WINDOW))
        .subquery()
    )
    made = latest.c.created_at
    query = select(latest.c.submission, func.count(), func.min(made), func.max(made))
    wanted = query.where(latest.c.submission.in_(list(left))).group_by(latest.c.submission)
    rates = {}
    for submission, count, first, last in connection.execute(wanted):
        # What has ended does not get slower by being looked at.
        until = moment if left[submission] else last
        # The first picture of the window marks its start, so it does not count; one alone has no rate.
        rates[submission] = (count - 1) / max((until - first).total_seconds(), 0.001)
    return rates


def _reasons(
    connection: Connection, submissions: Sequence[Submission], counts: Mapping[str, Counts], lease: float
) -> dict[str, str | None]:
    """Say why unfinished submissions do not move; None for those that do, or may at any moment."""
    reasons: dict[str, str | None] = {}
    alive: list[Worker] | None = None
    still = []
    for one in submissions:
        if one.state is SubmissionState.LOADING:
            reasons[one.id] = "its jobs are still being submitted"
            continue
        if one.state is SubmissionState.PAUSED:
            reasons[one.id] = f"paused: {one.note}" if one.note else "paused"
            continue
        alive = _alive(connection, lease) if alive is None else alive
        reasons[one.id] = _workers_say(alive, one.model)
        found = counts[one.id]
        if not (reasons[one.id] or found[JobStatus.RUNNING] or found[JobStatus.QUEUED]):
            still.append(one.id)
    return reasons | _backing_off(connection, still)


def _backing_off(connection: Connection, submissions: Sequence[str]) -> dict[str, str]:
    """Say of each submission whose waiting jobs are all to be tried later, when that is."""
    if not submissions:
        return {}
    # Usually the first one that is looked at is due: the earliest is looked for only where none is.
    moment, never_later = now(), now() + timedelta(seconds=BACKOFF_LIMIT)  # as dispatch judges
    due = or_(JOBS.c.not_before.is_(None), JOBS.c.not_before <= moment, JOBS.c.not_before > never_later)
    # A value and no EXISTS: PostgreSQL might hash all the jobs that wait for that.
    one_due = _its_jobs(_ONE, JobStatus.WAITING).where(due).limit(1).scalar_subquery()
    is_due = select(SUBMISSIONS.c.id, one_due).where(SUBMISSIONS.c.id.in_(submissions))
    late = [name for name, due_one in connection.execute(is_due) if due_one is None]
    if not late:
        return {}
    earliest = _its_jobs(func.min(JOBS.c.not_before), JobStatus.WAITING).scalar_subquery()
    query = select(SUBMISSIONS.c.id, earliest).where(SUBMISSIONS.c.id.in_(late))
    return {
        name: f"backing off after a failure until {until.isoformat(timespec='seconds')}"
        for name, until in connection.execute(query)
        if until is not None
    }


def _alive(connection: Connection, lease: float) -> list[Worker]:
    query = select(WORKERS).where(WORKERS.c.state.in_(ALIVE))
    workers = [to_worker(row) for row in connection.execute(query).mappings()]
    return [worker for worker in workers if (now() - worker.beat_at).total_seconds() < lease]


def _workers_say(alive: Sequence[Worker], model: str) -> str | None:
    serving = [worker for worker in alive if served_model(worker, model)]
    if not serving:
        known = [served for worker in alive for served in served_by(worker) if served.name == model]
        return next((served.problem for served in known if served.problem), no_live_worker(model))
    if all(worker.state is WorkerState.STARTING for worker in serving):
        return "the worker is loading its model"
    if all(worker.model != model for worker in serving):
        return f"the worker renders with model {serving[0].model} now, and takes turns"
    return next((worker.note for worker in serving if worker.note), None)
