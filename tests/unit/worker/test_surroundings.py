"""Patience with disk, store and database."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from storage.errors import StoreFullError, UnreachableError
from worker import surroundings
from worker.surroundings import GIVE_UP_AFTER, GaveUpError, Surroundings


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "BACKOFF_BASE", 0.0)


@pytest.fixture
def notes() -> list[str | None]:
    """What was told to the outside."""
    return []


@pytest.fixture
def stopping() -> threading.Event:
    """Set when the process ends."""
    return threading.Event()


@pytest.fixture
def patience(stopping: threading.Event, notes: list[str | None]) -> Surroundings:
    """The surroundings of one process."""
    return Surroundings(stopping, notes.append)


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Return an action that fails so many times before it succeeds."""
    left = [error] * times

    def act() -> str:
        if left:
            raise left.pop()
        return "done"

    return act


def test_what_works_is_done_once_without_a_word(patience: Surroundings, notes: list[str | None]) -> None:
    """Nobody hears of surroundings that are well."""
    assert patience.patiently(failing(0, OSError()), what="save", forever=False) == "done"
    assert notes == []


def test_a_fault_that_passes_is_waited_out_and_noted(patience: Surroundings, notes: list[str | None]) -> None:
    """`status` shows the reason meanwhile, and no longer when it is over."""
    action = failing(GIVE_UP_AFTER - 1, StoreFullError("The store is full."))
    assert patience.patiently(action, what="save", forever=False) == "done"
    assert notes == ["backing off: The store is full.", None]


@pytest.mark.parametrize(
    ("error", "forever"),
    [
        (StoreFullError("full"), False),
        (StoreFullError("full"), True),
        (UnreachableError("gone"), False),
    ],
)
def test_patience_ends(patience: Surroundings, error: Exception, *, forever: bool) -> None:
    """A full store always ends it, another fault only where nothing is lost by it."""
    tries = 0

    def act() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(GaveUpError, match=str(error)):
        patience.patiently(act, what="save", forever=forever)
    assert tries == GIVE_UP_AFTER
    patience.wait_until_well()


def test_an_outage_is_waited_out_for_ever(patience: Surroundings) -> None:
    """What only we know is kept through any number of failures: hours of them."""
    action = failing(1100, UnreachableError("gone"))
    assert patience.patiently(action, what="finish", forever=True) == "done"


def test_patience_ends_with_the_process(patience: Surroundings, stopping: threading.Event) -> None:
    """A process that stops waits for nothing."""
    stopping.set()
    with pytest.raises(GaveUpError):
        patience.patiently(failing(1, UnreachableError("gone")), what="finish", forever=True)


def test_an_error_of_the_job_passes_through(patience: Surroundings, notes: list[str | None]) -> None:
    """What is not a fault of the surroundings is not repeated."""
    with pytest.raises(ValueError, match="x"):
        patience.patiently(failing(1, ValueError("x")), what="save", forever=True)
    assert notes == []


def test_nobody_claims_while_somebody_struggles(patience: Surroundings) -> None:
    """Waiting threads go on when the last struggle is over, and not before."""
    struggling, over, claimed = threading.Event(), threading.Event(), threading.Event()

    def act() -> None:
        if not over.is_set():
            struggling.set()
            raise UnreachableError("gone")

    def claim() -> None:
        patience.wait_until_well()
        claimed.set()

    struggle = threading.Thread(target=lambda: patience.patiently(act, what="finish", forever=True))
    struggle.start()
    assert struggling.wait(10)
    patience.patiently(failing(1, UnreachableError("gone")), what="save", forever=True)
    waiting = threading.Thread(target=claim)
    waiting.start()
    assert not claimed.wait(0.05)
    over.set()
    assert claimed.wait(10)
    struggle.join()
    waiting.join()


def test_a_process_that_stops_lets_waiting_threads_go(
    patience: Surroundings, stopping: threading.Event
) -> None:
    """Threads that wait for better times see the end of the process."""
    patience._well.clear()
    stopping.set()
    patience.wait_until_well()
