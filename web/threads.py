"""How many requests work at a time: as many as there are connections to the database, or they wait for one.

Requests wait in the event loop, not in a thread; what takes long (a list that is submitted, a picture that is
made small) waits in a line of its own, so that no page waits behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")

READING = 5  # requests that read, and change a row or two
SUBMITTING = 2  # lists that are read, checked and written
SHRINKING = 4  # pictures that are fetched to be made small; no connection
POLLING = 1  # for all who watch
CONNECTIONS = READING + SUBMITTING + POLLING


class Threads:
    """The lines that long work waits in."""

    def __init__(self) -> None:
        self._submitting = CapacityLimiter(SUBMITTING)
        self._shrinking = CapacityLimiter(SHRINKING)

    async def submit(self, work: Callable[[], T]) -> T:
        """Let a list be submitted in a thread; return what that returns."""
        return await to_thread.run_sync(work, limiter=self._submitting)

    async def shrink(self, work: Callable[[], T]) -> T:
        """Let a picture be made small in a thread; return what that returns."""
        return await to_thread.run_sync(work, limiter=self._shrinking)


def limit_reading() -> None:
    """Let READING of the framework's own threads work at a time; called in the event loop."""
    to_thread.current_default_thread_limiter().total_tokens = READING
