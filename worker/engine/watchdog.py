"""Notices a step that does not end: a device that hangs raises nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.engine.errors import EngineDeadError

_LOOKS = 20  # in the time that a step may take


class Watchdog:
    """A thread that looks at the time of the step that runs.

    Args:
        limit: seconds that a step may take.
        bark: called once, from this thread, when a step takes longer.
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
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def _run(self) -> None:
        while not self._stopped.wait(self._limit / _LOOKS):
            began = self._began
            if began is not None and time.monotonic() - began > self._limit:
                self._bark(EngineDeadError(f"a step has taken more than {self._limit:g} s"))
                return
