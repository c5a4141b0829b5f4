"""Station 10: the reaper declares an incarnation dead whose heart has not beaten for the lease."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from storage.errors import UnreachableError
from storage.jobstore import JobStore
from storage.records import Worker, WorkerState

log = structlog.get_logger()

# Leases of one that still loads its model: it holds no jobs, and loading can keep a heart from beating.
LOADING_LEASES = 6


class Reaper:
    """Watches beats on its own monotonic clock, so that no wall clock can kill a worker.

    Args:
        jobs: the job store.
        lease: seconds without a beat until an incarnation is expired.
        clock: seconds, monotonic.
    """

    def __init__(self, jobs: JobStore, *, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._lease = lease
        self._clock = clock
        self._seen: dict[str, tuple[tuple[int, WorkerState] | None, float]] = {}
        self._looked = clock()

    def tick(self) -> int:
        """Expire who is overdue; return how many jobs that freed.

        Raises:
            UnreachableError: the database is down; all observations start again, so an outage expires nobody.
        """
        try:
            return self._observe()
        except UnreachableError:
            self._seen.clear()
            raise

    def _observe(self) -> int:
        now = self._clock()
        if now - self._looked >= self._lease:
            self._seen.clear()  # this process was frozen itself, perhaps with its whole machine
        self._looked = now
        alive = self._jobs.workers(alive_only=True)
        before, self._seen = self._seen, {}
        for worker in alive:
            sign = (worker.beat, worker.state)  # who has just loaded its model has not beaten yet
            last, since = before.get(worker.incarnation, (None, now))
            self._seen[worker.incarnation] = (sign, since if sign == last else now)
        freed = 0
        for worker in alive:
            incarnation, (_, since) = worker.incarnation, self._seen[worker.incarnation]
            if now - since >= self._patience(worker):
                jobs = self._jobs.release_incarnation(incarnation, crashed=True)
                log.warning("worker expired", action="expire", incarnation=incarnation, jobs=jobs)
                freed += jobs
        return freed

    def _patience(self, worker: Worker) -> float:
        return self._lease * (LOADING_LEASES if worker.state is WorkerState.STARTING else 1)
