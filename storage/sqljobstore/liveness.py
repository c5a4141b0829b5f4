"""Stations 10 and 11: workers, their heartbeats, and what happens to the jobs of one that died."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Update, delete, insert, or_, select, text, update

from storage.errors import BadInputError, StaleWorkerError
from storage.jobstore import MAX_FAILURES
from storage.records import Heard, JobStatus, SubmissionState, Worker, WorkerState
from storage.sqljobstore.base import (
    JOBS,
    META,
    SUBMISSIONS,
    WORKERS,
    SqlBase,
    now,
    status_is,
    storable,
    to_worker,
)
from storage.sqljobstore.claiming import given_back, in_state
from storage.sqljobstore.progress import ALIVE

KEPT_AFTER_ITS_END = timedelta(days=7)  # the row of an incarnation, for whoever asks what became of it


class Liveness(SqlBase):
    """Keep track of incarnations."""

    def add_worker(self, worker: Worker) -> None:
        """See `JobStore.add_worker`."""
        mine = WORKERS.c.incarnation == worker.incarnation
        with self.database.write() as connection:
            state = connection.execute(select(WORKERS.c.state).where(mine)).scalar()
            values = {**asdict(worker), "state": worker.state.value}
            if state is None:
                connection.execute(insert(WORKERS).values(values))
                return
            if state not in ALIVE:
                raise _stale(worker.incarnation)
            del values["drain_timeout"], values["started_at"]  # somebody may have asked meanwhile
            connection.execute(update(WORKERS).where(mine).values(values))

    def oldest_worker_version(self) -> str:
        """Return the oldest promptmill version whose workers this schema allows."""
        with self.database.read() as connection:
            return str(connection.execute(select(META.c.value).filter_by(key="oldest_worker")).scalar_one())

    def heartbeat(self, incarnation: str, progress: Mapping[int, float], *, lanes_used: int = 0) -> Heard:
        """See `JobStore.heartbeat`."""
        beat: dict[str, Any] = {
            "beat": WORKERS.c.beat + 1,
            "beat_at": now(),
            "progress": {str(job): round(value, 4) for job, value in progress.items()},
            "lanes_used": lanes_used,
        }
        with self.database.write() as connection:
            if not self.database.is_sqlite:
                # A beat lost in a power cut is replaced a second later: not worth a disk flush.
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            alive = update(WORKERS).where(WORKERS.c.incarnation == incarnation, WORKERS.c.state.in_(ALIVE))
            answer = connection.execute(alive.values(beat).returning(WORKERS.c.drain_timeout)).one_or_none()
            if answer is None:
                raise _stale(incarnation)
            ours = (
                select(JOBS.c.id)
                .join(SUBMISSIONS, SUBMISSIONS.c.id == JOBS.c.submission)
                .where(JOBS.c.incarnation == incarnation, status_is(JobStatus.RUNNING))
                .where(SUBMISSIONS.c.state != SubmissionState.CANCELLED)
            )
            return Heard(jobs=set(connection.execute(ours).scalars()), drain_timeout=answer.drain_timeout)

    def set_worker_state(self, incarnation: str, state: WorkerState, *, note: str | None = None) -> None:
        """See `JobStore.set_worker_state`."""
        alive = update(WORKERS).where(WORKERS.c.incarnation == incarnation, WORKERS.c.state.in_(ALIVE))
        with self.database.write() as connection:
            connection.execute(alive.values(state=state.value, note=None if note is None else storable(note)))

    def forget_workers(self) -> list[Worker]:
        """See `JobStore.forget_workers`."""
        newer = WORKERS.alias("newer")
        outdated = (
            select(newer.c.incarnation)
            .where(newer.c.model == WORKERS.c.model, newer.c.revision.is_not(None))
            .where(newer.c.started_at > WORKERS.c.started_at)
            .correlate(WORKERS)
            .exists()
        )
        ended = (
            WORKERS.c.state.not_in(ALIVE),
            WORKERS.c.beat_at < now() - KEPT_AFTER_ITS_END,
            or_(WORKERS.c.revision.is_(None), outdated),
        )
        with self.database.read() as connection:
            found = list(connection.execute(select(WORKERS.c.incarnation).where(*ended)).scalars())
        if not found:
            return []
        gone = delete(WORKERS).where(WORKERS.c.incarnation.in_(found), *ended).returning(WORKERS)
        with self.database.write() as connection:
            return [to_worker(row) for row in connection.execute(gone).mappings()]

    def drain_workers(self, name: str, *, timeout: float) -> list[Worker]:
        """See `JobStore.drain_workers`."""
        with self.database.write() as connection:
            alive = select(WORKERS.c.incarnation, WORKERS.c.name).where(WORKERS.c.state.in_(ALIVE))
            rows = connection.execute(alive).all()
            found = [row.incarnation for row in rows if row.name == name]
            # Not LIKE: `sd15@gpu` is not to drain `sd15@gpu-backup`.
            found = found or [
                row.incarnation for row in rows if re.fullmatch(re.escape(name) + r"-\d+", row.name)
            ]
            if not found:
                raise BadInputError(f"No live worker is called {name!r}; see `promptmill worker list`.")
            asked = update(WORKERS).where(WORKERS.c.incarnation.in_(found)).values(drain_timeout=timeout)
            return [to_worker(row) for row in connection.execute(asked.returning(WORKERS)).mappings()]

    def release_incarnation(self, incarnation: str, *, crashed: bool) -> int:
        """See `JobStore.release_incarnation`."""
        mine = (JOBS.c.incarnation == incarnation, status_is(JobStatus.RUNNING))
        state = WorkerState.EXPIRED if crashed else WorkerState.STOPPED
        with self.database.write() as connection:
            end = update(WORKERS).where(WORKERS.c.incarnation == incarnation, WORKERS.c.state.in_(ALIVE))
            connection.execute(end.values(state=state.value, progress={}))
            freed = 0
            if crashed:
                alone = (*mine, JOBS.c.suspect.is_(True))
                freed += connection.execute(_condemned(*alone)).rowcount
                charged = update(JOBS).where(*alone).values(failures=JOBS.c.failures + 1, **given_back())
                freed += connection.execute(charged).rowcount
            suspicion = {"suspect": True} if crashed else {}
            others = update(JOBS).where(*mine).values(**given_back(), **suspicion)
            return freed + connection.execute(others).rowcount

    def release_orphans(self) -> int:
        """See `JobStore.release_orphans`."""
        with self.database.read() as connection:
            found = list(connection.execute(select(JOBS.c.id).where(*_ORPHANS)).scalars())
        if not found:
            return 0
        back = update(JOBS).where(JOBS.c.id.in_(found), *_ORPHANS).values(given_back())
        with self.database.write() as connection:
            return connection.execute(back).rowcount


_ORPHANS = (
    status_is(JobStatus.RUNNING),
    select(WORKERS.c.incarnation)
    .where(WORKERS.c.incarnation == JOBS.c.incarnation, WORKERS.c.state.not_in(ALIVE))
    .correlate(JOBS)
    .exists(),
)


def _stale(incarnation: str) -> StaleWorkerError:
    return StaleWorkerError(
        f"This worker ({incarnation}) was declared dead while it was silent; it stops, and its jobs "
        f"are rendered elsewhere."
    )


def _condemned(*alone: ColumnElement[bool]) -> Update:
    """End a job that crashed its worker process while it ran alone, for the last time that it may."""
    guilty = (*alone, JOBS.c.failures >= MAX_FAILURES - 1, ~in_state(SubmissionState.CANCELLED))
    return (
        update(JOBS)
        .where(*guilty)
        .values(
            status=JobStatus.FAILED.value,
            failures=JOBS.c.failures + 1,
            finished_at=now(),
            error_type="WorkerCrash",
            error_message=(
                f"The worker process died {MAX_FAILURES} times while it rendered only this job; "
                f"see the worker's log, then `promptmill retry` it."
            ),
        )
    )
