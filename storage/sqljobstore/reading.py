"""Station 12: status, watch and show read rows only."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, bindparam, func, select

from storage.errors import BadInputError
from storage.parameters import estimate_cost
from storage.records import (
    Job,
    JobStatus,
    Status,
    Submission,
    SubmissionState,
    Worker,
)
from storage.sqljobstore.base import (
    IMAGES,
    JOBS,
    SUBMISSIONS,
    WORKERS,
    SqlBase,
    now,
    storable,
    to_submission,
    to_worker,
)
from storage.sqljobstore.progress import ALIVE, count_jobs, status_of
from storage.sqljobstore.selecting import job_of, with_images

MAX_DIGITS = 10
ORIGINALS = 3  # pictures that are offered to be taken over: the file of one may be lost
LATEST = 400  # pictures over which a model's speed is measured
LULL = 60.0  # seconds without a picture, after which nobody is thought to have been rendering

# Not a join: SQLite would begin with all the jobs of the model.
_model_of_image = (
    select(SUBMISSIONS.c.model)
    .join_from(JOBS, SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission)
    .where(JOBS.c.id == IMAGES.c.job)
    .correlate(IMAGES)
    .scalar_subquery()
)
# Supervisors ask these twice a second, so they are put together once.
_RENDERED_SINCE = (
    select(func.count())
    .select_from(IMAGES)
    .where(
        IMAGES.c.created_at > bindparam("since", type_=IMAGES.c.created_at.type),
        _model_of_image == bindparam("of_model", type_=SUBMISSIONS.c.model.type),
    )
)
_WORKERS = select(WORKERS).order_by(WORKERS.c.started_at.desc(), WORKERS.c.incarnation)
_ALIVE_WORKERS = _WORKERS.where(WORKERS.c.state.in_(ALIVE))


class Reading(SqlBase):
    """Answer questions; nothing here writes."""

    def find_submission(self, reference: str) -> Submission:
        """See `JobStore.find_submission`."""
        with self.database.read() as connection:
            return to_submission(_find(connection, reference))

    def find_content(self, content_hash: str) -> Submission | None:
        """See `JobStore.find_content`."""
        usable = SUBMISSIONS.c.state.in_((SubmissionState.OPEN, SubmissionState.PAUSED))
        query = select(SUBMISSIONS).where(SUBMISSIONS.c.content_hash == content_hash, usable)
        with self.database.read() as connection:
            row = connection.execute(query.order_by(SUBMISSIONS.c.seq.desc()).limit(1)).mappings().first()
        return None if row is None else to_submission(row)

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
            query = with_images().where(JOBS.c.submission == submission["id"])
            # An index of more digits than any has is not even a number for the database.
            number = int(index) if len(index) < MAX_DIGITS else -1
            row = connection.execute(query.where(JOBS.c.index == number)).mappings().one_or_none()
            if row is None:
                raise BadInputError(f"Submission {submission['id']} has no job {index}; {_span(submission)}.")
            return job_of(row, _progress(connection, row))

    def find_pictures(self, file_sha256: str, *, limit: int = 50) -> list[Job]:
        """See `JobStore.find_pictures`."""
        query = with_images().where(IMAGES.c.file_sha256 == file_sha256).order_by(IMAGES.c.id.desc())
        with self.database.read() as connection:
            return [job_of(row) for row in connection.execute(query.limit(limit)).mappings()]

    def find_rendered(self, fingerprint: str) -> list[Job]:
        """See `JobStore.find_rendered`."""
        query = with_images().where(IMAGES.c.fingerprint == fingerprint).order_by(IMAGES.c.id.desc())
        with self.database.read() as connection:
            return [job_of(row) for row in connection.execute(query.limit(ORIGINALS)).mappings()]

    def counts(self, submission: str) -> dict[JobStatus, int]:
        """See `JobStore.counts`."""
        # While rows are removed the total is no number of rows.
        whole = SUBMISSIONS.c.state != SubmissionState.PRUNING
        query = select(SUBMISSIONS.c.total).where(SUBMISSIONS.c.id == submission, whole)
        with self.database.read() as connection:
            return count_jobs(connection, submission, total=connection.execute(query).scalar() or 0)

    def status(self, submission: str, *, lease: float) -> Status:
        """See `JobStore.status`."""
        with self.database.read() as connection:
            return status_of(connection, to_submission(_find(connection, submission)), lease)

    def rendered_since(self, model: str, since: datetime) -> int:
        """See `JobStore.rendered_since`."""
        with self.database.read() as connection:
            return connection.execute(_RENDERED_SINCE, {"since": since, "of_model": model}).scalar_one()

    def speed(self, model: str) -> float | None:
        """See `JobStore.speed`."""
        columns = (JOBS.c.num_inference_steps, JOBS.c.guidance_scale, JOBS.c.width, JOBS.c.height)
        query = (
            select(IMAGES.c.created_at, *columns)
            .join_from(IMAGES, JOBS, JOBS.c.id == IMAGES.c.job)
            .where(_model_of_image == model, IMAGES.c.copied_from.is_(None))
            .order_by(IMAGES.c.created_at.desc())
            .limit(LATEST)
        )
        with self.database.read() as connection:
            rows = list(connection.execute(query).mappings())
        seconds = cost = 0.0
        for later, earlier in itertools.pairwise(rows):
            gap = (later["created_at"] - earlier["created_at"]).total_seconds()
            if gap < LULL:
                seconds, cost = seconds + gap, cost + estimate_cost(later)
        return cost / seconds if seconds else None

    def rates(self, *, over: float) -> dict[str, float]:
        """See `JobStore.rates`."""
        query = (
            select(JOBS.c.incarnation, func.count())
            .join_from(IMAGES, JOBS, JOBS.c.id == IMAGES.c.job)
            .where(IMAGES.c.created_at > now() - timedelta(seconds=over))
            .group_by(JOBS.c.incarnation)
        )
        with self.database.read() as connection:
            return {incarnation: count / over for incarnation, count in connection.execute(query)}

    def workers(self, *, alive_only: bool = False) -> list[Worker]:
        """See `JobStore.workers`."""
        query = _ALIVE_WORKERS if alive_only else _WORKERS
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
        raise BadInputError(
            "The name of a submission is empty; give an id, a prefix of one, a name, or @last."
        )
    reference = storable(reference)
    # By whole columns first, which an index answers; the beginning of an id is looked for in all of them.
    exactly = select(SUBMISSIONS).where(SUBMISSIONS.c.id == reference.lower())
    by_name = newest.where(SUBMISSIONS.c.name == reference).limit(1)
    for query in (exactly, by_name):
        row = connection.execute(query).mappings().one_or_none()
        if row is not None:
            return row
    prefix = newest.where(SUBMISSIONS.c.id.startswith(reference.lower(), autoescape=True)).limit(3)
    found = connection.execute(prefix).mappings().all()
    if len(found) > 1:
        ids = ", ".join(row["id"] for row in found)
        raise BadInputError(f"{reference!r} could be {ids}; give more characters.")
    if not found:
        raise BadInputError(f"There is no submission {reference!r}; see `promptmill list`.")
    return found[0]


def _span(submission: RowMapping) -> str:
    return f"its jobs are 0 to {submission['total'] - 1}" if submission["total"] else "it has none yet"


def _progress(connection: Connection, row: RowMapping) -> float | None:
    if row["status"] != JobStatus.RUNNING:
        return None
    query = select(WORKERS.c.progress).filter_by(incarnation=row["incarnation"])
    progress: dict[str, float] = connection.execute(query).scalar() or {}
    return progress.get(str(row["id"]), 0.0)
