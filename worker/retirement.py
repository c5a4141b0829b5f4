"""`worker drain`: end for good, within a time that may still be changed."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Retirement:
    """What a worker process does when it is asked to finish.

    Attributes:
        begun: whether it was.
    """

    def __init__(self, drain: Callable[[], object], *, late: Callable[[], object]) -> None:
        """Wait for the request.

        Args:
            drain: takes nothing new and ends the process once the rest is done; called once.
            late: ends it at once, when the time is over.
        """
        self._drain, self._late = drain, late
        self._timer: threading.Timer | None = None
        self.begun = False

    def ask(self, timeout: float) -> None:
        """Begin, or give it another time; returns at once.

        Args:
            timeout: seconds from now.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(timeout, self._late)
        self._timer.daemon = True
        self._timer.start()
        if not self.begun:
            self.begun = True
            threading.Thread(target=self._drain, name="drain", daemon=True).start()
