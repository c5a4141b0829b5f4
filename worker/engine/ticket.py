"""What a submitter holds of a request, whichever engine renders it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Protocol

from worker.engine.request import RenderResult


class Ticketed(Protocol):
    """What a ticket is for."""

    future: Future[RenderResult]
    cancelled: threading.Event

    @property
    def progress(self) -> float:
        """Share of the forward passes that are done, 0 to 1."""


class Ticket:
    """What the submitter holds: the future, the progress, and the means to cancel."""

    def __init__(self, request: Ticketed) -> None:
        self._request = request

    @property
    def future(self) -> Future[RenderResult]:
        """Ends with a RenderResult, or with an error of `worker.engine.errors`."""
        return self._request.future

    @property
    def progress(self) -> float:
        """Share of the forward passes that are done, 0 to 1."""
        return self._request.progress

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next step; the future then raises Cancelled."""
        self._request.cancelled.set()
