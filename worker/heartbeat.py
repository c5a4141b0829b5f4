"""Station 10: one beat a second says that this process lives, and hears which jobs are still its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from storage.errors import StaleWorkerError, UnreachableError
from storage.jobstore import JobStore
from worker.metrics import BEAT_FAILURES

log = structlog.get_logger()

BEAT = 1.0  # seconds
STRAY_AFTER = 10  # beats in a row that a job of ours is held by nobody here


class Heartbeat:
    """A thread that beats until it is stopped.

    Args:
        jobs: the job store.
        incarnation: whose heart it is.
        progress: returns the share done of each job that the process holds, by job id.
        lanes_used: returns how many lanes are in use.
        drop: told the id of each job that was cancelled or taken over.
        stray: told the id of each job that the database says is ours and nobody here holds: the reply to its
            claim was lost.
        drain: called with a timeout in seconds when somebody asks this process to finish, and again when they
            change it.
        stale: called once when a reaper declared this process dead.
    """

    def __init__(
        self,
        jobs: JobStore,
        incarnation: str,
        *,
        progress: Callable[[], Mapping[int, float]],
        lanes_used: Callable[[], int],
        drop: Callable[[int], None],
        stray: Callable[[int], None],
        drain: Callable[[float], None],
        stale: Callable[[StaleWorkerError], None],
    ) -> None:
        self._jobs = jobs
        self._incarnation = incarnation
        self._progress = progress
        self._lanes_used = lanes_used
        self._drop = drop
        self._stray = stray
        self._drain = drain
        self._drain_timeout: float | None = None
        self._stale = stale
        self._beaten = time.monotonic()
        self._stopped = threading.Event()
        self._ailing = False
        self._unheld: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def age(self) -> float:
        """Seconds since the last beat that the database has heard, or since there is this heart."""
        return time.monotonic() - self._beaten

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; no beat follows. May be called before the start, and from a beat."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self.beat()
            except StaleWorkerError as error:
                self._stale(error)
                return
            except UnreachableError as error:
                BEAT_FAILURES.inc()
                # The lease runs on the reaper's side, which forgets its observations in an outage.
                if not self._ailing:
                    log.warning("heartbeat failed, trying again", action="heartbeat", reason=str(error))
                self._ailing = True
            except Exception:  # a silent heart would leave a process that claims in vain for ever
                log.exception("heartbeat failed, trying again", action="heartbeat")

    def beat(self) -> None:
        """Beat once, drop what is no longer ours, and give back what is ours without anybody knowing."""
        # Taken before the question: what is claimed after it cannot be in the answer.
        held = dict(self._progress())
        heard = self._jobs.heartbeat(self._incarnation, held, lanes_used=self._lanes_used())
        self._ailing = False
        self._beaten = time.monotonic()
        if heard.drain_timeout is not None and heard.drain_timeout != self._drain_timeout:
            self._drain_timeout = heard.drain_timeout
            self._drain(heard.drain_timeout)
        for job in held.keys() - heard.jobs:
            self._drop(job)
        self._unheld = {job: self._unheld.get(job, 0) + 1 for job in heard.jobs - held.keys()}
        for job, beats in self._unheld.items():
            if beats >= STRAY_AFTER:
                self._stray(job)
