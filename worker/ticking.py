"""The tick: expire the silent, sweep the cancelled, keep Redis running and its queue full; twice a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from storage.dispatch import TICK, Dispatcher
from storage.embedded_redis import EmbeddedRedis
from storage.errors import BadInputError, SchemaError, UnreachableError
from storage.jobstore import JobStore
from storage.queue import JobQueue
from storage.reaper import Reaper
from worker.metrics import DISPATCHED, REPUBLISHED, TAKEOVERS, TICK_FAILURES, TICK_SECONDS, WINDOW
from worker.version import check_version

log = structlog.get_logger()

SWEEP_EVERY = 10  # ticks between two looks for jobs that a killed `cancel` or an ended worker left behind
SWEEP_FOR = 0.7  # seconds of a tick: as long as the window of queued jobs lasts for others
FORGET_EVERY = 3600.0  # seconds between two looks for rows of workers that ended long ago
SWEEP_TICK = 0.02  # seconds, while cancelled jobs are left: others have had their turn in this tick
FAST_TICK = 0.1  # seconds, while the queue's window was more than half empty


class Ticker:
    """A thread that ticks until it is stopped; every supervisor has one, so none is special.

    Args:
        jobs: the job store.
        queues: of the models that are served here.
        redis: the embedded one, or None.
        lease: seconds without a beat until an incarnation is expired.
        dispatches: whether jobs are still wanted here.
        too_old: told when the database was upgraded and asks for newer workers.
    """

    def __init__(
        self,
        jobs: JobStore,
        queues: Sequence[JobQueue],
        redis: EmbeddedRedis | None,
        *,
        lease: float,
        dispatches: Callable[[], bool],
        too_old: Callable[[SchemaError], None],
    ) -> None:
        self._jobs, self._redis, self._dispatches, self._too_old = jobs, redis, dispatches, too_old
        self._dispatchers = [Dispatcher(jobs, queue, queue.model) for queue in queues]
        self._reaper = Reaper(jobs, lease=lease)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tick", daemon=True)
        self._ticks = 0
        self._swept = 0
        self._forget_at = 0.0

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
                with TICK_SECONDS.time():
                    pause = self._tick()
                if ailing:
                    log.info("recovered", action="tick")
                ailing = ""
            except (UnreachableError, BadInputError) as error:
                TICK_FAILURES.inc()
                if str(error) != ailing:  # say it once, not twice a second
                    log.warning("tick failed, trying again", action="tick", reason=str(error))
                ailing = str(error)
            except Exception:  # whatever it is, the next tick may work: nobody else dispatches
                TICK_FAILURES.inc()
                log.exception("tick failed, trying again", action="tick")
            self._ticks += 1
            self._stopped.wait(pause)

    def _tick(self) -> float:
        """Do everything once; return the seconds until the next time."""
        TAKEOVERS.inc(self._reaper.tick())
        self._clean_up()
        if self._redis is not None:  # after what needs only the database
            self._redis.ensure_running()
        ticked = [dispatch(dispatcher) for dispatcher in self._dispatchers] if self._dispatches() else []
        if self._swept:
            return SWEEP_TICK
        return FAST_TICK if any(ticked) else TICK

    def _clean_up(self) -> None:
        """See to what others have left behind: cancelled jobs, jobs of the dead, rows of the long dead."""
        looks = self._ticks % SWEEP_EVERY == 0
        if looks or self._swept:
            self._swept = self._jobs.sweep_cancelled(seconds=SWEEP_FOR)
        if looks:
            self._check_version()
        if looks and (orphans := self._jobs.release_orphans()):
            log.warning("released jobs that nobody held", action="orphans", jobs=orphans)
        if time.monotonic() >= self._forget_at:
            if gone := self._jobs.forget_workers():
                log.info("forgot ended workers", action="forget", workers=len(gone))
            self._forget_at = time.monotonic() + FORGET_EVERY

    def _check_version(self) -> None:
        """See whether an upgrade of the database, while this process runs, has left its version behind."""
        try:
            check_version(self._jobs)
        except SchemaError as error:
            self._too_old(error)


def dispatch(dispatcher: Dispatcher) -> bool:
    """Tick, and count what came of it."""
    asked_for_more = dispatcher.tick()
    WINDOW.labels(dispatcher.model).set(dispatcher.window)
    DISPATCHED.labels(dispatcher.model).inc(dispatcher.queued)
    REPUBLISHED.labels(dispatcher.model).inc(dispatcher.republished)
    return asked_for_more
