"""Faults of the surroundings (disk, store, database): never a job's fault, so wait and try again.

While one thread waits, nobody claims. After many failures in a row the worker gives up: it pauses the
submission with the reason, so that nobody renders pictures that cannot be kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from storage.errors import StoreFullError, UnreachableError
from worker.metrics import BACKOFFS

log = structlog.get_logger()
T = TypeVar("T")

BACKOFF_BASE, BACKOFF_LIMIT = 0.25, 8.0  # seconds: 0.25, 0.5, 1 … 8
GIVE_UP_AFTER = 7  # tries in a row at a full store: about 16 s


class GaveUpError(UnreachableError):
    """The store stayed full or broken for too long; the worker stops."""


class Surroundings:
    """Patience with the outside world, shared by all threads of a worker process.

    Args:
        stopping: set when the process ends; patience ends with it.
        note: told what it is waiting for (None when it is over), for `status` to show.
    """

    def __init__(self, stopping: threading.Event, note: Callable[[str | None], None]) -> None:
        self._stopping = stopping
        self._note = note
        self._lock = threading.Lock()
        self._ailing = 0
        self._well = threading.Event()
        self._well.set()

    @property
    def ailing(self) -> int:
        """How many threads struggle now."""
        return self._ailing

    def wait_until_well(self) -> None:
        """Wait while somebody struggles: no new job is claimed meanwhile."""
        while not self._well.wait(timeout=0.5):
            if self._stopping.is_set():
                return

    def patiently(self, action: Callable[[], T], *, what: str, forever: bool) -> T:
        """Do `action`, again and again while the surroundings fail.

        Args:
            action: raises UnreachableError when the surroundings fail; must be safe to repeat.
            what: for the log, e.g. `save`.
            forever: True where giving up would lose what only we know; a full disk ends it all the same.

        Raises:
            GaveUpError: after many failures in a row, or when the process is stopping.
        """
        tries = 0
        try:
            while True:
                try:
                    return action()
                except UnreachableError as error:
                    tries += 1
                    self._begin(tries, what, error)
                    final = tries >= GIVE_UP_AFTER and (not forever or isinstance(error, StoreFullError))
                    if final or self._stopping.wait(
                        min(BACKOFF_LIMIT, BACKOFF_BASE * 2.0 ** min(tries - 1, 16))
                    ):
                        raise GaveUpError(str(error)) from error
        finally:
            if tries:
                self._end()

    def _begin(self, tries: int, what: str, error: Exception) -> None:
        BACKOFFS.labels(what).inc()
        log.warning("surroundings failed", action=what, tries=tries, reason=str(error))
        if tries == 1:
            with self._lock:
                self._ailing += 1
                self._well.clear()
            self._note(f"backing off: {error}")

    def _end(self) -> None:
        with self._lock:
            self._ailing -= 1
            well = not self._ailing
            if well:
                self._well.set()
        if well:
            self._note(None)
