"""Station 3: which waiting jobs are queued next. Priority first, then stride scheduling, then index.

Stride scheduling (Waldspurger and Weihl, 1995): every pick adds `cost / weight` to its submission's `pass`,
and the lowest pass is picked next, so that a small list overtakes a huge one without stopping it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, bindparam, case, func, or_, select, text, update

from storage.parameters import estimate_cost
from storage.records import JobStatus, SubmissionState
from storage.sqljobstore.base import JOBS, SUBMISSIONS, SqlBase, now, status_is
from storage.sqljobstore.claiming import BACKOFF_LIMIT

# Nobody backs off for longer: a later moment was written by a worker whose clock was wrong by hours.
NEVER_LATER = timedelta(seconds=BACKOFF_LIMIT)
DISPATCH_LOCK = 0x70726F6D  # PostgreSQL's advisory lock for dispatch: "prom"


class Dispatching(SqlBase):
    """Move jobs from waiting to queued."""

    def take_for_dispatch(self, model: str, *, window: int) -> list[int]:
        """See `JobStore.take_for_dispatch`."""
        moment = now()
        with self.database.read() as connection:
            if window <= _queued_count(connection, model) or not _candidates(connection, model, moment):
                return []  # most ticks end here, without the writer's lock
        with self.database.write() as connection:
            if not self._locked(connection):
                return []
            room = window - _queued_count(connection, model)
            picked = list(_picks(connection, model, moment, room)) if room > 0 else []
            if picked:
                queue = update(JOBS).where(JOBS.c.id.in_(picked), status_is(JobStatus.WAITING))
                connection.execute(queue.values(status=JobStatus.QUEUED.value, queued_at=moment))
            return picked

    def models_with_work(self, models: Iterable[str]) -> set[str]:
        """See `TakingTurns.models_with_work`."""
        moment = now()
        with self.database.read() as connection:
            return {
                model
                for model in models
                if _queued_count(connection, model) or _candidates(connection, model, moment)
            }

    def model_of(self, job: int) -> str | None:
        """See `TakingTurns.model_of`."""
        query = select(SUBMISSIONS.c.model).select_from(_JOINED).where(JOBS.c.id == job)
        with self.database.read() as connection:
            return connection.execute(query).scalar()

    def queued(self, model: str) -> list[int]:
        """See `JobStore.queued`."""
        with self.database.read() as connection:
            return list(connection.execute(_QUEUED, {"of_model": model}).scalars())

    def _locked(self, connection: Connection) -> bool:
        if self.database.is_sqlite:
            return True  # the writer's lock is held already
        return bool(
            connection.execute(
                text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": DISPATCH_LOCK}
            ).scalar()
        )


def _queued_count(connection: Connection, model: str) -> int:
    return connection.execute(_QUEUED_COUNT, {"of_model": model}).scalar_one()


def _candidates(connection: Connection, model: str, moment: datetime) -> list[RowMapping]:
    asked = {"of_model": model, "by_now": moment, "by_then": moment + NEVER_LATER}
    return list(connection.execute(_CANDIDATES, asked).mappings())


def _candidates_query() -> Select[Any]:
    ready = (
        select(JOBS.c.id)
        .where(
            JOBS.c.submission == SUBMISSIONS.c.id,
            *_ready(
                bindparam("by_now", type_=JOBS.c.not_before.type),
                bindparam("by_then", type_=JOBS.c.not_before.type),
            ),
        )
        .correlate(SUBMISSIONS)
        .exists()
    )
    # Of a limited submission; who is at its limit has nothing for this dispatch.
    held = (
        select(func.count())
        .where(JOBS.c.submission == SUBMISSIONS.c.id, status_is(JobStatus.QUEUED, JobStatus.RUNNING))
        .correlate(SUBMISSIONS)
        .scalar_subquery()
    )
    limited = SUBMISSIONS.c.max_running.is_not(None)
    query = select(
        SUBMISSIONS.c.id,
        SUBMISSIONS.c.seq,
        SUBMISSIONS.c.priority,
        SUBMISSIONS.c.weight,
        SUBMISSIONS.c["pass"],
        case((limited, SUBMISSIONS.c.max_running - held)).label("left"),
    )
    room = or_(~limited, held < SUBMISSIONS.c.max_running)
    return query.where(*_OPEN_ONES, ready, room)


def _ready(moment: Any, never_later: Any) -> tuple[Any, Any]:
    due = or_(JOBS.c.not_before.is_(None), JOBS.c.not_before <= moment, JOBS.c.not_before > never_later)
    return status_is(JobStatus.WAITING), due


def _picks(connection: Connection, model: str, moment: datetime, room: int) -> Iterator[int]:
    """Yield the ids of the next `room` jobs and store the passes that they leave behind."""
    candidates = _candidates(connection, model, moment)
    heap = [(-row["priority"], row["pass"], row["seq"], row["id"], row["weight"]) for row in candidates]
    heapq.heapify(heap)
    left = {row["id"]: row["left"] for row in candidates if row["left"] is not None}
    jobs: dict[str, Iterator[RowMapping]] = {}
    passes: dict[str, float] = {}
    while heap and room > 0:
        priority, position, seq, submission, weight = heapq.heappop(heap)
        if left.get(submission, 1) <= 0:
            continue
        if submission not in jobs:
            jobs[submission] = _next_jobs(connection, submission, moment, room)
        job = next(jobs[submission], None)
        if job is None:
            continue
        yield job["id"]
        room -= 1
        if submission in left:
            left[submission] -= 1
        passes[submission] = position + estimate_cost(job) / weight
        heapq.heappush(heap, (priority, passes[submission], seq, submission, weight))
    for submission, position in passes.items():
        connection.execute(
            update(SUBMISSIONS).where(SUBMISSIONS.c.id == submission).values({"pass": position})
        )


def _next_jobs(connection: Connection, submission: str, moment: datetime, limit: int) -> Iterator[RowMapping]:
    columns = (JOBS.c.id, JOBS.c.num_inference_steps, JOBS.c.guidance_scale, JOBS.c.width, JOBS.c.height)
    query = (
        select(*columns)
        .where(JOBS.c.submission == submission, *_ready(moment, moment + NEVER_LATER))
        .order_by(JOBS.c.index)
        .limit(limit)
        # A row that a cancel or a sweep holds now is left to the next tick, not waited for (PostgreSQL only).
        .with_for_update(skip_locked=True)
    )
    return iter(connection.execute(query).mappings().all())


# Every supervisor asks these twice a second, so they are put together once.
_OPEN_ONES = (
    SUBMISSIONS.c.model == bindparam("of_model", type_=SUBMISSIONS.c.model.type),
    SUBMISSIONS.c.state == SubmissionState.OPEN.value,
)
_JOINED = JOBS.join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission)
_QUEUED = select(JOBS.c.id).select_from(_JOINED).where(*_OPEN_ONES, status_is(JobStatus.QUEUED))
_QUEUED_COUNT = select(func.count()).select_from(_JOINED).where(*_OPEN_ONES, status_is(JobStatus.QUEUED))
_CANDIDATES = _candidates_query()
