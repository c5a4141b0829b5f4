"""One call runs in a thread while its caller goes on; its end and its errors are waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from storage.sqljobstore.behind import Behind


def refuse() -> None:
    """Fail as a database does."""
    raise OSError("full")


def test_calls_run_one_after_the_other_and_are_over_at_the_end() -> None:
    """The second begins when the first has ended."""
    done: list[int] = []
    with Behind() as behind:
        for number in range(3):
            behind.start(done.append, number)
    assert done == [0, 1, 2]


def fails_with(kind: type[BaseException], *calls: Callable[[], object]) -> bool:
    """Start the calls and then raise, if nothing else has; whether it ended with this kind of error."""
    try:
        with Behind() as behind:
            for call in calls:
                behind.start(call)
            raise kind  # noqa: TRY301  (as something between the calls does)
    except kind:
        return True


def test_an_error_reaches_who_starts_the_next_call_or_ends() -> None:
    """Once, and no call is begun after it."""
    done: list[int] = []
    assert fails_with(OSError, refuse, lambda: done.append(1))
    assert done == []
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.start(refuse)


def test_another_error_waits_for_the_call_and_ctrl_c_does_not() -> None:
    """Only a process that is about to end leaves a call alone."""
    going_on, over = threading.Event(), threading.Event()

    def long() -> None:
        going_on.wait(60)
        over.set()

    assert fails_with(KeyboardInterrupt, long)
    assert not over.is_set()
    going_on.set()
    assert over.wait(60)
    over.clear()
    assert fails_with(ValueError, long)
    assert over.is_set()
