"""Let the database work on one thing while the next one is made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Behind:
    """Runs one call at a time in a thread, and its errors reach who waits for it.

    A context manager: at its end nothing runs any more, except after Ctrl-C. Then the call is left alone, and
    the end of the process ends it: it must be one that a kill at any moment does not harm.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, call: Callable[..., Any], *args: Any) -> None:
        """Wait for the call before, then begin this one."""
        self.wait()
        # A daemon: the interpreter would not end before any other thread.
        self._thread = threading.Thread(target=self._run, args=(call, *args), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the call that runs, if any; raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as error:  # noqa: BLE001  (whatever it is, `wait` raises it)
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif not issubclass(kind, KeyboardInterrupt) and self._thread is not None:
            self._thread.join()
