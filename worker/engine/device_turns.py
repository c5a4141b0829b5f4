"""Who uses the device: one thread at a time, in the order in which they asked."""

from __future__ import annotations

import threading
from types import TracebackType


class DeviceTurns:
    """A lock that is fair: of two engines in one process each has every second turn, if both want it.

    Python's own lock lets whoever gives it away take it again at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = 0
        self._turn = 0

    def acquire(self) -> None:
        """Wait for a turn."""
        with self._changed:
            mine = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._turn == mine)

    def release(self) -> None:
        """End the turn."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def __enter__(self) -> None:
        """Wait for a turn."""
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the turn."""
        self.release()
