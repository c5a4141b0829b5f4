"""Station 3: dispatch and reconciliation. A tick of a supervisor; it needs no process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from storage.jobstore import JobStore
from storage.served import served_model

log = structlog.get_logger()

TICK = 0.5  # seconds between two ticks of a supervisor
RATE_OVER = 10.0  # seconds over which the rate for the window is measured
REPUBLISH_AFTER = 10.0  # seconds a queued row may be without a message before it is published again


class Publisher(Protocol):
    """The sending end of a queue, as `storage.queue.JobQueue`."""

    def publish(self, jobs: list[int]) -> None:
        """Send one message a job."""
        ...

    def pending(self) -> set[int]:
        """Return the jobs whose message nobody has taken yet."""
        ...


class Dispatcher:
    """Keeps the queue of one model topped up, and messages and rows in step.

    Args:
        jobs: the job store.
        queue: the model's queue.
        model: its name.
        clock: seconds, monotonic; a wall clock may jump.

    Attributes:
        model: see above.
        window: jobs that were to be queued at the last tick.
        queued, republished: jobs that were, by the last tick, for the first time and once more.
    """

    def __init__(
        self, jobs: JobStore, queue: Publisher, model: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._clock = clock
        self._missing_since: dict[int, float] = {}
        self.model, self.window, self.queued, self.republished = model, 0, 0, 0

    def tick(self) -> bool:
        """Top up the queue and mend what Redis forgot; say whether the window was more than half empty.

        Raises:
            UnreachableError: database or Redis are down; the next tick mends what this one left half done.
        """
        self.window = window = self._window()
        taken = self._jobs.take_for_dispatch(self.model, window=window) if window else []
        self.queued, self.republished = len(taken), 0
        if taken:
            log.debug("dispatch", action="dispatch", model=self.model, job_ids=taken, window=window)
            self._queue.publish(taken)
        self._reconcile()
        return len(taken) * 2 > window

    def _window(self) -> int:
        """How many jobs are to be queued: half of what workers hold, or what they render in two ticks."""
        workers = self._jobs.workers(alive_only=True)
        serving = [model for worker in workers if (model := served_model(worker, self.model))]
        if not serving:
            return 0
        since = datetime.now(UTC) - timedelta(seconds=RATE_OVER)
        rate = self._jobs.rendered_since(self.model, since) / RATE_OVER
        # A small submission waits behind the window; half of the workers' places are enough for jobs that end
        # together, and an emptied window is filled again at once (`make bench NAME=fairness`).
        # What is queued for a model whose turn has not come is no more than that either.
        burst = math.ceil(sum(model.concurrency for model in serving) / 2)
        return max(burst, math.ceil(rate * 2 * TICK))

    def _reconcile(self) -> None:
        """Publish again what has been queued without a message for ten seconds: Redis may be flushed."""
        queued = self._jobs.queued(self.model)
        missing = set(queued) - self._queue.pending() if queued else set()
        now = self._clock()
        self._missing_since = {job: self._missing_since.get(job, now) for job in missing}
        lost = sorted(job for job, since in self._missing_since.items() if now - since >= REPUBLISH_AFTER)
        if lost:
            log.warning("published again", action="republish", model=self.model, jobs=len(lost))
            self.republished = len(lost)
            self._queue.publish(lost)
            for job in lost:
                del self._missing_since[job]
