"""Stations 5 to 9: claim, finish, fail, release.

The fencing token is (job, submission, running, attempt, incarnation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from storage.jobstore import MAX_FAILURES
from storage.model_families import GENERAL_DEFAULTS
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
        asked = {"asked_job": job, "asked_by": incarnation, "asked_at": now()}
        asked |= {f"known_{name}": known[name] for name in CHOSEN_LATER}
        with self.database.write() as connection:
            row = connection.execute(_GRANT_ALONE if alone else _GRANT, asked).mappings().one_or_none()
            if row is None:
                return _refuse(connection, job, alone=alone)
            fields = ("submission", "index", "attempt", "failures", "model", "priority", "reuse")
            return Claim(
                job=job,
                incarnation=incarnation,
                **{name: row[name] for name in fields},
                parameters=to_parameters(row),
            )

    def finish(self, claim: Claim, image: Image, *, warnings: Sequence[str] = ()) -> Finish:
        """See `JobStore.finish`."""
        done = {"done_at": now(), "done_warnings": list(warnings)}
        with self.database.write() as connection:
            if connection.execute(_FINISH, {**_token(claim), **done}).rowcount:
                connection.execute(_ADD_IMAGE, {"job": claim.job, "created_at": now(), **asdict(image)})
                return Finish.SAVED
            there = select(JOBS.c.status, JOBS.c.attempt).filter_by(id=claim.job, submission=claim.submission)
            found = connection.execute(there)
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
            if not connection.execute(update(JOBS).where(*_HELD).values(values), _token(claim)).rowcount:
                return Failure.LOST
        return Failure.FAILED if ends else Failure.WAITING

    def release(self, claim: Claim) -> bool:
        """See `JobStore.release`."""
        with self.database.write() as connection:
            back = update(JOBS).where(*_HELD).values(given_back())
            return bool(connection.execute(back, _token(claim)).rowcount)

    def release_stray(self, job: int, incarnation: str) -> bool:
        """See `JobStore.release_stray`."""
        mine = (JOBS.c.id == job, status_is(JobStatus.RUNNING), JOBS.c.incarnation == incarnation)
        with self.database.write() as connection:
            return bool(connection.execute(update(JOBS).where(*mine).values(given_back())).rowcount)


def given_back() -> dict[str, Any]:
    """Values of a running job that is given back: `cancelled` if its submission was, else `waiting`."""
    cancelled = in_state(SubmissionState.CANCELLED)
    return {
        "status": case((cancelled, JobStatus.CANCELLED.value), else_=JobStatus.WAITING.value),
        "finished_at": case((cancelled, literal(now(), JOBS.c.finished_at.type)), else_=None),
        "queued_at": None,
    }


def _token(claim: Claim) -> dict[str, Any]:
    """The fencing token, as `_HELD` compares it."""
    return {
        "held_job": claim.job,
        "held_in": claim.submission,
        "held_attempt": claim.attempt,
        "held_by": claim.incarnation,
    }


def in_state(state: SubmissionState) -> ColumnElement[bool]:
    """Whether a job's submission is in this state."""
    query = select(SUBMISSIONS.c.seq).where(
        SUBMISSIONS.c.id == JOBS.c.submission, SUBMISSIONS.c.state == state
    )
    return query.correlate(JOBS).exists()


def _refuse(connection: Connection, job: int, *, alone: bool) -> Refusal:
    query = select(JOBS.c.status, JOBS.c.suspect, _OPEN.label("open")).where(JOBS.c.id == job)
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


def _asked(column: ColumnElement[Any], name: str) -> BindParameter[Any]:
    return bindparam(f"asked_{name}", type_=column.type)


def _recommended(name: str) -> ColumnElement[Any]:
    """What a job gets that leaves `name` open; a schedule only with its sampler, as in `fill_defaults`."""
    known: BindParameter[Any] = bindparam(f"known_{name}", type_=JOBS.c[name].type)
    if name != "schedule":
        return known
    sampler: BindParameter[Any] = bindparam("known_sampler", type_=JOBS.c.sampler.type)
    default = literal(DEFAULT_SCHEDULE, JOBS.c.schedule.type)
    return case((func.coalesce(JOBS.c.sampler, sampler) == sampler, known), else_=default)


def _grant(*, alone: bool) -> ReturningUpdate[Any]:
    """Only a ready worker claims: what an expired one claimed would never be released again.

    One that was asked to drain does not, even before it has heard of it.
    """
    asking = _asked(WORKERS.c.incarnation, "by")
    may = select(WORKERS.c.incarnation).where(
        WORKERS.c.incarnation == asking,
        WORKERS.c.state == WorkerState.READY.value,
        WORKERS.c.drain_timeout.is_(None),
    )
    grant = update(JOBS).where(
        JOBS.c.id == _asked(JOBS.c.id, "job"),
        status_is(JobStatus.QUEUED),
        JOBS.c.suspect == alone,
        _OPEN,
        may.exists(),
    )
    if alone:
        other = JOBS.alias("other")
        running = other.c.status == literal_column(f"'{JobStatus.RUNNING.value}'")  # as in status_is
        grant = grant.where(~select(other.c.id).where(other.c.incarnation == asking, running).exists())
    chosen = {name: func.coalesce(JOBS.c[name], _recommended(name)) for name in CHOSEN_LATER}
    return grant.values(
        status=JobStatus.RUNNING.value,
        attempt=JOBS.c.attempt + 1,
        incarnation=asking,
        started_at=_asked(JOBS.c.started_at, "at"),
        **chosen,
    ).returning(JOBS, *(_of_submission(column) for column in ("model", "priority", "reuse")))


def _of_submission(column: str) -> ColumnElement[Any]:
    query = select(SUBMISSIONS.c[column]).where(SUBMISSIONS.c.id == JOBS.c.submission).correlate(JOBS)
    return query.scalar_subquery().label(column)


# Every job runs these, so they are put together once: that took as long as the database did to answer them.
_OPEN = in_state(SubmissionState.OPEN)
_GRANT, _GRANT_ALONE = _grant(alone=False), _grant(alone=True)
_HELD = (
    JOBS.c.id == bindparam("held_job"),
    JOBS.c.submission == bindparam("held_in"),  # SQLite gives the ids of pruned jobs to new ones
    status_is(JobStatus.RUNNING),
    JOBS.c.attempt == bindparam("held_attempt"),
    JOBS.c.incarnation == bindparam("held_by"),
)
_FINISH = (
    update(JOBS)
    .where(*_HELD)
    .values(
        status=JobStatus.SUCCEEDED.value,
        finished_at=bindparam("done_at", type_=JOBS.c.finished_at.type),
        warnings=bindparam("done_warnings", type_=JOBS.c.warnings.type),
        suspect=False,
        **dict.fromkeys(("error_type", "error_message", "traceback", "not_before")),
    )
)
_ADD_IMAGE = insert(IMAGES).inline()
