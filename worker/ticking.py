"""The tick: expire the silent, sweep the cancelled, keep Redis running and its queue full; twice a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from storage.dispatch import TICK, Dispatcher
from storage.embedded_redis import EmbeddedRedis
from storage.errors import BadInputError, UnreachableError
from storage.jobstore import JobStore
from storage.queue import JobQueue
from storage.reaper import Reaper

log = structlog.get_logger()

SWEEP_EVERY = 10  # ticks between two looks for jobs that a killed `cancel` or an ended worker left behind
FAST_TICK = 0.1  # seconds, while the queue's window was more than half empty


class Ticker:
    """A thread that ticks until it is stopped; every supervisor has one, so none is special.

    Args:
        jobs: the job store.
        queues: of the models that are served here.
        redis: the embedded one, or None.
        lease: seconds without a beat until an incarnation is expired.
        dispatches: whether jobs are still wanted here.
    """

    def __init__(
        self,
        jobs: JobStore,
        queues: Sequence[JobQueue],
        redis: EmbeddedRedis | None,
        *,
        lease: float,
        dispatches: Callable[[], bool],
    ) -> None:
        self._jobs, self._redis, self._dispatches = jobs, redis, dispatches
        self._dispatchers = [Dispatcher(jobs, queue, queue.model) for queue in queues]
        self._reaper = Reaper(jobs, lease=lease)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tick", daemon=True)
        self._ticks = 0

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, after the tick that goes on."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        ailing = ""
        while not self._stopped.is_set():
            pause = TICK
            try:
                pause = self._tick()
                if ailing:
                    log.info("recovered", action="tick")
                ailing = ""
            except (UnreachableError, BadInputError) as error:
                if str(error) != ailing:  # say it once, not twice a second
                    log.warning("tick failed, trying again", action="tick", reason=str(error))
                ailing = str(error)
            except Exception:  # whatever it is, the next tick may work: nobody else dispatches
                log.exception("tick failed, trying again", action="tick")
            self._ticks += 1
            self._stopped.wait(pause)

    def _tick(self) -> float:
        """Do everything once; return the seconds until the next time."""
        self._reaper.tick()
        if self._ticks % SWEEP_EVERY == 0:
            self._jobs.sweep_cancelled()
            if orphans := self._jobs.release_orphans():
                log.warning("released jobs that nobody held", action="orphans", jobs=orphans)
        if self._redis is not None:  # after what needs only the database
            self._redis.ensure_running()
        if not self._dispatches():
            return TICK
        ticked = [dispatcher.tick() for dispatcher in self._dispatchers]
        return FAST_TICK if any(ticked) else TICK
