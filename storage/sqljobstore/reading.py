"""Station 12: status, watch and show read rows only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, select

from storage.errors import BadInputError
from storage.records import UNFINISHED, Image, Job, JobStatus, Status, Submission, SubmissionState, Worker, WorkerState
from storage.sqljobstore.base import (
    IMAGES,
    JOBS,
    SUBMISSIONS,
    WORKERS,
    SqlBase,
    now,
    status_is,
    to_image,
    to_job,
    to_submission,
    to_worker,
)

PAGE = 1_000
RATE_WINDOW = 30.0  # seconds over which images/s is measured
ALIVE = (WorkerState.STARTING.value, WorkerState.READY.value, WorkerState.DRAINING.value)


class Reading(SqlBase):
    """Answer questions; nothing here writes."""

    def find_submission(self, reference: str) -> Submission:
        """See `JobStore.find_submission`."""
        with self.database.read() as connection:
            return to_submission(_find(connection, reference))

    def submissions(self, *, limit: int = 50) -> list[Submission]:
        """See `JobStore.submissions`."""
        with self.database.read() as connection:
            rows = connection.execute(select(SUBMISSIONS).order_by(SUBMISSIONS.c.seq.desc()).limit(limit))
            return [to_submission(row) for row in rows.mappings()]

    def find_job(self, reference: str) -> Job:
        """See `JobStore.find_job`."""
        name, colon, index = reference.rpartition(":")
        if not colon or not index.isdecimal():
            raise BadInputError(f"{reference!r} names no job; write SUBMISSION:INDEX, for example @last:0.")
        with self.database.read() as connection:
            submission = _find(connection, name)
            query = _with_images().where(JOBS.c.submission == submission["id"], JOBS.c.index == int(index))
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                raise BadInputError(
                    f"Submission {submission['id']} has no job {index}; its jobs are 0 to {submission['total'] - 1}."
                )
            return _job(row, _progress(connection, row))

    def jobs(
        self, submission: str, *, statuses: Sequence[JobStatus] = (), after: int = -1, limit: int | None = None
    ) -> Iterator[Job]:
        """See `JobStore.jobs`."""
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            query = _with_images().where(JOBS.c.submission == submission, JOBS.c.index > after)
            if statuses:
                query = query.where(status_is(*statuses))
            with self.database.read() as connection:
                page = [_job(row) for row in connection.execute(query.order_by(JOBS.c.index).limit(size)).mappings()]
            yield from page
            if len(page) < size:
                return
            after = page[-1].index
            left = None if left is None else left - len(page)

    def counts(self, submission: str) -> dict[JobStatus, int]:
        """See `JobStore.counts`."""
        with self.database.read() as connection:
            return _counts(connection, submission)

    def status(self, submission: str, *, lease: float) -> Status:
        """See `JobStore.status`."""
        with self.database.read() as connection:
            record = to_submission(_find(connection, submission))
            counts = _counts(connection, record.id)
            rate = _images_per_second(connection, record.id)
            unfinished = sum(counts[status] for status in UNFINISHED)
            return Status(
                submission=record,
                counts=counts,
                images_per_second=rate,
                eta_seconds=unfinished / rate if rate and unfinished else None,
                waiting_because=_waiting_because(connection, record, counts, lease) if unfinished else None,
            )

    def rendered_since(self, model: str, since: datetime) -> int:
        """See `JobStore.rendered_since`."""
        query = (
            select(func.count())
            .select_from(IMAGES.join(JOBS, JOBS.c.id == IMAGES.c.job).join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission))
            .where(IMAGES.c.created_at > since, SUBMISSIONS.c.model == model)
        )  # fmt: skip
        with self.database.read() as connection:
            return connection.execute(query).scalar_one()

    def workers(self, *, alive_only: bool = False) -> list[Worker]:
        """See `JobStore.workers`."""
        query = select(WORKERS).order_by(WORKERS.c.started_at.desc(), WORKERS.c.incarnation)
        if alive_only:
            query = query.where(WORKERS.c.state.in_(ALIVE))
        with self.database.read() as connection:
            return [to_worker(row) for row in connection.execute(query).mappings()]


def _find(connection: Connection, reference: str) -> RowMapping:
    newest = select(SUBMISSIONS).order_by(SUBMISSIONS.c.seq.desc())
    if reference == "@last":
        row = connection.execute(newest.limit(1)).mappings().one_or_none()
        if row is None:
            raise BadInputError("There is no submission yet; make one with `promptmill submit`.")
        return row
    if not reference:
        raise BadInputError("The name of a submission is empty; give an id, a prefix of one, a name, or @last.")
    named = connection.execute(newest.where(SUBMISSIONS.c.name == reference).limit(1)).mappings().one_or_none()
    escaped = reference.lower().replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    prefix = newest.where(SUBMISSIONS.c.id.like(f"{escaped}%", escape="\\")).limit(3)
    found = connection.execute(prefix).mappings().all()
    exact = [row for row in found if row["id"] == reference.lower()]
    if exact or named is not None:
        return exact[0] if exact else named  # type: ignore[return-value]  # one of the two is set
    if len(found) > 1:
        ids = ", ".join(row["id"] for row in found)
        raise BadInputError(f"{reference!r} could be {ids}; give more characters.")
    if not found:
        raise BadInputError(f"There is no submission {reference!r}; see `promptmill list`.")
    return found[0]


def _with_images() -> Select[Any]:
    image = [column.label(f"image_{column.name}") for column in IMAGES.c]
    return select(JOBS, *image).select_from(JOBS.outerjoin(IMAGES, IMAGES.c.job == JOBS.c.id))


def _job(row: RowMapping, progress: float | None = None) -> Job:
    image: Image | None = None
    if row["image_id"] is not None:
        image = to_image({column.name: row[f"image_{column.name}"] for column in IMAGES.c})
    return to_job(row, image, progress)


def _progress(connection: Connection, row: RowMapping) -> float | None:
    if row["status"] != JobStatus.RUNNING:
        return None
    progress = connection.execute(select(WORKERS.c.progress).filter_by(incarnation=row["incarnation"])).scalar() or {}
    return progress.get(str(row["id"]), 0.0)


def _counts(connection: Connection, submission: str) -> dict[JobStatus, int]:
    query = select(JOBS.c.status, func.count()).where(JOBS.c.submission == submission).group_by(JOBS.c.status)
    found = {JobStatus(status): count for status, count in connection.execute(query).tuples()}
    return {status: found.get(status, 0) for status in JobStatus}


def _images_per_second(connection: Connection, submission: str) -> float:
    moment = now()
    query = (
        select(func.count(), func.min(IMAGES.c.created_at))
        .select_from(IMAGES.join(JOBS, JOBS.c.id == IMAGES.c.job))
        .where(IMAGES.c.created_at > moment - timedelta(seconds=RATE_WINDOW), JOBS.c.submission == submission)
    )
    count, first = connection.execute(query).tuples().one()
    if count < 2:  # noqa: PLR2004  (one picture has no rate)
        return 0.0
    # The first picture of the window marks its start, so it does not count.
    return float((count - 1) / max((moment - first).total_seconds(), 0.001))


def _waiting_because(
    connection: Connection, submission: Submission, counts: dict[JobStatus, int], lease: float
) -> str | None:
    if submission.state is SubmissionState.LOADING:
        return "its jobs are still being submitted"
    if submission.state is SubmissionState.PAUSED:
        return f"paused: {submission.note}" if submission.note else "paused"
    rows = connection.execute(select(WORKERS).where(WORKERS.c.model == submission.model, WORKERS.c.state.in_(ALIVE)))
    alive = [row for row in rows.mappings() if (now() - row["beat_at"]).total_seconds() < lease]
    if not alive:
        return f"no live worker serves model {submission.model}"
    if all(row["state"] == WorkerState.STARTING for row in alive):
        return "the worker is loading its model"
    notes = [row["note"] for row in alive if row["note"]]
    if notes:
        return str(notes[0])
    if counts[JobStatus.RUNNING] or counts[JobStatus.QUEUED]:
        return None
    backoff = select(func.min(JOBS.c.not_before)).where(JOBS.c.submission == submission.id, status_is(JobStatus.WAITING))
    until = connection.execute(backoff).scalar()
    if until is not None and until > now():
        return f"backing off after a failure until {until.isoformat(timespec='seconds')}"
    return None
