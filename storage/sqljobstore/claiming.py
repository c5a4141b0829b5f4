"""Stations 5 to 9: claim, finish, fail, release.

The fencing token is (job, running, attempt, incarnation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, insert, literal, literal_column, select, update

from storage.jobstore import MAX_FAILURES
from storage.model_defaults import GENERAL_DEFAULTS
from storage.parameters import DEFAULT_SCHEDULE
from storage.records import Claim, Failure, Finish, Image, JobStatus, Refusal, SubmissionState, WorkerState
from storage.sqljobstore.base import (
    CHOSEN_LATER,
    IMAGES,
    JOBS,
    SUBMISSIONS,
    WORKERS,
    SqlBase,
    now,
    status_is,
    storable,
    to_parameters,
)

BACKOFF_BASE, BACKOFF_LIMIT = 1.0, 60.0  # seconds before a failed job is tried again: 1, 2, 4 … 60
NOT_AT_ONCE = timedelta(seconds=1)  # before a job that a worker sent back is offered again
ASSUMED_SIZE = {"width": 512, "height": 512}  # pixels, of a worker that published none


class Claiming(SqlBase):
    """Hand a job to one incarnation under one attempt, and take back what became of it."""

    def claim(
        self, job: int, incarnation: str, *, defaults: Mapping[str, Any], alone: bool = False
    ) -> Claim | Refusal:
        """See `JobStore.claim`."""
        known = {**GENERAL_DEFAULTS, **ASSUMED_SIZE, **defaults}
        grant = (
            update(JOBS)
            .where(
                JOBS.c.id == job,
                status_is(JobStatus.QUEUED),
                JOBS.c.suspect == alone,
                _open(),
                _may_claim(incarnation),
            )
            .values({name: func.coalesce(JOBS.c[name], _recommended(name, known)) for name in CHOSEN_LATER})
            .values(
                status=JobStatus.RUNNING.value,
                attempt=JOBS.c.attempt + 1,
                incarnation=incarnation,
                started_at=now(),
            )
            .returning(JOBS)
        )
        if alone:
            grant = grant.where(~_runs_something(incarnation))
        with self.database.write() as connection:
            row = connection.execute(grant).mappings().one_or_none()
            if row is None:
                return _refuse(connection, job, alone=alone)
            model = connection.execute(
                select(SUBMISSIONS.c.model).filter_by(id=row["submission"])
            ).scalar_one()
            return Claim(
                job=row["id"],
                **{name: row[name] for name in ("submission", "index", "attempt", "failures", "incarnation")},
                model=model,
                parameters=to_parameters(row),
            )

    def finish(self, claim: Claim, image: Image, *, warnings: Sequence[str] = ()) -> Finish:
        """See `JobStore.finish`."""
        done = {
            "status": JobStatus.SUCCEEDED.value,
            "finished_at": now(),
            "warnings": list(warnings),
            "suspect": False,
        }
        with self.database.write() as connection:
            cleared = {"error_type": None, "error_message": None, "traceback": None, "not_before": None}
            if connection.execute(update(JOBS).where(*_held(claim)).values({**done, **cleared})).rowcount:
                connection.execute(insert(IMAGES).values(job=claim.job, created_at=now(), **asdict(image)))
                return Finish.SAVED
            found = connection.execute(select(JOBS.c.status, JOBS.c.attempt).filter_by(id=claim.job))
            ours = found.one_or_none() == (JobStatus.SUCCEEDED, claim.attempt)
            return Finish.OURS if ours else Finish.LOST

    def fail(
        self,
        claim: Claim,
        *,
        error_type: str,
        message: str,
        traceback: str | None = None,
        permanent: bool = False,
        max_failures: int = MAX_FAILURES,
    ) -> Failure:
        """See `JobStore.fail`."""
        failures = claim.failures + 1
        ends = permanent or failures >= max_failures
        backoff = min(BACKOFF_LIMIT, BACKOFF_BASE * 2.0 ** min(failures - 1, 16))
        ended = {"status": JobStatus.FAILED.value, "finished_at": now(), "not_before": None}
        again = {**given_back(), "not_before": now() + timedelta(seconds=backoff)}
        values = {
            "failures": failures,
            "suspect": False,
            "error_type": error_type,
            "error_message": storable(message),
            "traceback": None if traceback is None else storable(traceback),
            **(ended if ends else again),
        }
        with self.database.write() as connection:
            if not connection.execute(update(JOBS).where(*_held(claim)).values(values)).rowcount:
                return Failure.LOST
        return Failure.FAILED if ends else Failure.WAITING

    def release(self, claim: Claim) -> bool:
        """See `JobStore.release`."""
        with self.database.write() as connection:
            return bool(connection.execute(update(JOBS).where(*_held(claim)).values(given_back())).rowcount)

    def release_stray(self, job: int, incarnation: str) -> bool:
        """See `JobStore.release_stray`."""
        mine = (JOBS.c.id == job, status_is(JobStatus.RUNNING), JOBS.c.incarnation == incarnation)
        with self.database.write() as connection:
            return bool(connection.execute(update(JOBS).where(*mine).values(given_back())).rowcount)


def _recommended(name: str, known: Mapping[str, Any]) -> ColumnElement[Any]:
    """What a job gets that leaves `name` open; a schedule only with its sampler, as in `fill_defaults`."""
    value = literal(known[name], JOBS.c[name].type)
    if name != "schedule":
        return value
    as_recommended = func.coalesce(JOBS.c.sampler, known["sampler"]) == known["sampler"]
    return case((as_recommended, value), else_=literal(DEFAULT_SCHEDULE, JOBS.c.schedule.type))


def given_back() -> dict[str, Any]:
    """Values of a running job that is given back: `cancelled` if its submission was, else `waiting`."""
    cancelled = in_state(SubmissionState.CANCELLED)
    return {
        "status": case((cancelled, JobStatus.CANCELLED.value), else_=JobStatus.WAITING.value),
        "finished_at": case((cancelled, literal(now(), JOBS.c.finished_at.type)), else_=None),
        "queued_at": None,
    }


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (
        JOBS.c.id == claim.job,
        status_is(JobStatus.RUNNING),
        JOBS.c.attempt == claim.attempt,
        JOBS.c.incarnation == claim.incarnation,
    )


def in_state(state: SubmissionState) -> ColumnElement[bool]:
    """Whether a job's submission is in this state."""
    query = select(SUBMISSIONS.c.seq).where(
        SUBMISSIONS.c.id == JOBS.c.submission, SUBMISSIONS.c.state == state
    )
    return query.correlate(JOBS).exists()


def _open() -> ColumnElement[bool]:
    return in_state(SubmissionState.OPEN)


def _may_claim(incarnation: str) -> ColumnElement[bool]:
    """Only a ready worker claims: what an expired one claimed would never be released again.

    One that was asked to drain does not, even before it has heard of it.
    """
    query = select(WORKERS.c.incarnation).where(
        WORKERS.c.incarnation == incarnation,
        WORKERS.c.state == WorkerState.READY,
        WORKERS.c.drain_timeout.is_(None),
    )
    return query.exists()


def _runs_something(incarnation: str) -> ColumnElement[bool]:
    other = JOBS.alias("other")
    running = other.c.status == literal_column(f"'{JobStatus.RUNNING.value}'")  # as in status_is
    return select(other.c.id).where(other.c.incarnation == incarnation, running).exists()


def _refuse(connection: Connection, job: int, *, alone: bool) -> Refusal:
    query = select(JOBS.c.status, JOBS.c.suspect, _open().label("open")).where(JOBS.c.id == job)
    row = connection.execute(query).one_or_none()
    if row is None or row.status != JobStatus.QUEUED:
        return Refusal.GONE
    if row.suspect and row.open and not alone:
        return Refusal.SUSPECT
    # In company; or its submission is paused or cancelled, or this worker drains. Its message is spent.
    back = update(JOBS).where(JOBS.c.id == job, status_is(JobStatus.QUEUED))
    connection.execute(
        back.values(status=JobStatus.WAITING.value, queued_at=None, not_before=now() + NOT_AT_ONCE)
    )
    return Refusal.COMPANY if alone else Refusal.GONE
