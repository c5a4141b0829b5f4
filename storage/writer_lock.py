"""The lock that gives a SQLite home one writer at a time."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import UnreachableError

WRITER_PATIENCE = 60.0  # seconds; a commit takes milliseconds, so this long means that someone is frozen


class WriterLock:
    """One writer per home: a thread lock around a file lock.

    SQLite's own waiting polls with long sleeps and starves writers; a commit of ours takes milliseconds, so
    whoever waits here is served at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; UnreachableError if another process keeps it for a minute."""
        with self._threads:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _flock(descriptor, self._path)
                yield
            finally:
                os.close(descriptor)  # also releases the lock


def _flock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + WRITER_PATIENCE
    pause = 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"Another process has held {path} for {WRITER_PATIENCE:.0f} s; "
                    f"look for a frozen promptmill process."
                ) from None
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        else:
            return
