"""The requests that are in the engine, and the one lock that guards them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from worker.engine.errors import EngineDeadError, EngineError, Released
from worker.engine.request import RenderResult


class Member(Protocol):
    """What a roster knows of a request."""

    arrival: int
    future: Future[RenderResult]

    @property
    def started(self) -> bool:
        """Whether it was admitted, so that draining waits for it."""

    def start(self) -> None:
        """Note that it was admitted."""


M = TypeVar("M", bound=Member)


class Roster(Generic[M]):
    """Waiting and running requests in the order of arrival.

    A future is resolved by whoever takes its request out of here, so that it is resolved exactly once,
    although submitters, a draining process and the engine's thread act at the same time.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: list[M] = []
        self._arrivals = 0
        self._closed = False
        self._death: str | None = None

    @property
    def dead(self) -> bool:
        """Whether `kill` was called."""
        return self._death is not None

    def add(self, request: M) -> None:
        """Let a request in, and wake the engine.

        Raises:
            Released: when it drains or is closed.
            EngineDeadError: when it is dead.
        """
        with self._changed:
            if self._death is not None:
                raise EngineDeadError(self._death)
            if self._closed:
                raise Released("The engine takes no new requests, because it drains.")
            self._arrivals += 1
            request.arrival = self._arrivals
            request.future.set_running_or_notify_cancel()  # from here on only the ticket can cancel it
            self._requests.append(request)
            self._changed.notify_all()

    def snapshot(self) -> list[M]:
        """List the requests as they are now."""
        with self._changed:
            return list(self._requests)

    def start_some(self, choose: Callable[[list[M]], list[M]]) -> list[M]:
        """Mark as started those that `choose` picks and that were not started yet, and return these.

        One action under the lock: draining can never give back a request that was just admitted.
        """
        with self._changed:
            joining = [request for request in choose(list(self._requests)) if not request.started]
            for request in joining:
                request.start()
            return joining

    def settle(self, request: M, outcome: RenderResult | EngineError) -> None:
        """Take a request out and resolve its future; nothing happens when somebody else did."""
        with self._changed:
            if request not in self._requests:
                return
            self._requests.remove(request)
        if isinstance(outcome, RenderResult):
            request.future.set_result(outcome)
        else:
            request.future.set_exception(outcome)

    def wait(self, until: Callable[[], bool]) -> bool:
        """Sleep until there is a request, or `until()` or death; tell whether there is work to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or until() or self.dead)
            return not (until() or self.dead)

    def wake(self) -> None:
        """Make a sleeping engine look again."""
        with self._changed:
            self._changed.notify_all()

    def release(self, sentence: str, *, started_too: bool = False) -> int:
        """Close the door and give back requests; returns how many."""
        with self._changed:
            self._closed = True
            released = [request for request in self._requests if started_too or not request.started]
        for request in released:
            self.settle(request, Released(sentence))
        return len(released)

    def kill(self, sentence: str) -> None:
        """Close the door for good and fail everybody."""
        with self._changed:
            self._death = sentence
            self._changed.notify_all()
        for request in self.snapshot():
            self.settle(request, EngineDeadError(sentence))
