"""What `worker drain` sets off in a worker process."""

from __future__ import annotations

import threading

from worker.retirement import Retirement


def test_it_begins_once_and_its_time_can_be_changed() -> None:
    """The second request, with no time left, ends it at once."""
    drained, late = threading.Semaphore(0), threading.Event()
    retirement = Retirement(drained.release, late=late.set)
    assert not retirement.begun
    retirement.ask(3600.0)
    assert drained.acquire(timeout=10)
    assert retirement.begun
    assert not late.is_set()
    retirement.ask(0.0)
    assert late.wait(timeout=10)
    assert not drained.acquire(blocking=False)
