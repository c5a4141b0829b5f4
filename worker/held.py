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
        self._tickets: dict[int, tuple[Claim, Ticket | None]] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Hold a job for the length of a `with`."""
        with self._lock:
            self._tickets[claim.job] = claim, None
        try:
            yield
        finally:
            with self._lock:
                self._tickets.pop(claim.job, None)

    def submitted(self, job: int, ticket: Ticket) -> None:
        """Note that the engine has it; one that was dropped meanwhile leaves it at its next step."""
        with self._lock:
            held = self._tickets.get(job)
            if held is not None:
                self._tickets[job] = held[0], ticket
        if held is None:
            ticket.cancel()

    def drop(self, job: int) -> None:
        """Let the engine drop a job that is no longer ours."""
        with self._lock:
            claim, ticket = self._tickets.pop(job, (None, None))
        if claim is not None and ticket is not None:
            log.info("dropped", action="drop", job=claim.label, submission=claim.submission)
            ticket.cancel()

    def progress(self) -> dict[int, float]:
        """Return the share done of each job."""
        with self._lock:
            return {job: ticket.progress if ticket else 0.0 for job, (_, ticket) in self._tickets.items()}
