"""Notices work on the device that does not end: a device that hangs raises nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.engine.errors import EngineDeadError

_LOOKS = 20  # in the time that a step may take


class Watchdog:
    """A thread that looks at the time since the last sign of life.

    Args:
        limit: seconds that a forward pass, an encoding or a decode may take.
        bark: called once, from this thread, when one takes longer.
    """

    def __init__(self, limit: float, bark: Callable[[EngineDeadError], None]) -> None:
        self._limit = limit
        self._bark = bark
        self._began: float | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop; may be called from anywhere."""
        self._stopped.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is done in this `with`."""
        self.beat()
        try:
            yield
        finally:
            self._began = None

    def pause(self) -> None:
        """Do not watch until the next sign of life: what is waited for is no device."""
        self._began = None

    def beat(self) -> None:
        """Give a sign of life: something is done, and the next thing begins."""
        self._began = time.monotonic()

    def _run(self) -> None:
        while not self._stopped.wait(self._limit / _LOOKS):
            began = self._began
            if began is not None and time.monotonic() - began > self._limit:
                self._bark(EngineDeadError(f"the device has not answered for {self._limit:g} s"))
                return
