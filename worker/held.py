"""The jobs that a worker process holds, from their claim to their end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from storage.records import Claim
from worker.engine.ticket import Ticket

log = structlog.get_logger()


class Held:
    """Knows each job's ticket once the engine has it; tasks and the heartbeat ask at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: dict[int, Ticket | None] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Hold a job for the length of a `with`."""
        with self._lock:
            self._tickets[claim.job] = None
        try:
            yield
        finally:
            with self._lock:
                self._tickets.pop(claim.job, None)

    def submitted(self, job: int, ticket: Ticket) -> None:
        """Note that the engine has it; one that was dropped meanwhile leaves it at its next step."""
        with self._lock:
            dropped = job not in self._tickets
            if not dropped:
                self._tickets[job] = ticket
        if dropped:
            ticket.cancel()

    def drop(self, job: int) -> None:
        """Let the engine drop a job that is no longer ours."""
        with self._lock:
            ticket = self._tickets.pop(job, None)
        if ticket is not None:
            log.info("dropped", action="drop", job=job)
            ticket.cancel()

    def progress(self) -> dict[int, float]:
        """Return the share done of each job."""
        with self._lock:
            return {job: ticket.progress if ticket else 0.0 for job, ticket in self._tickets.items()}
