"""Whose turn it is: jobs of one model are inside at a time, so that one engine has the device to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets jobs of the model in that has its turn, and keeps the others waiting.

    Args:
        model: that has its turn; None for none.
        places: how many are let in at once; None for any number.
    """

    def __init__(self, model: str | None = None, *, places: int | None = None) -> None:
        self._changed = threading.Condition()
        self._model = model
        self._places = places
        self._inside = 0
        self._closed = False

    @property
    def inside(self) -> int:
        """How many jobs are inside."""
        return self._inside

    @contextmanager
    def passing(self, model: str) -> Iterator[bool]:
        """Be inside for one job; waits for its model's turn, and is False if that does not come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_place(model))
            let_in = not self._closed
            self._inside += let_in
        try:
            yield let_in
        finally:
            with self._changed:
                self._inside -= let_in
                self._changed.notify_all()

    def _has_place(self, model: str) -> bool:
        return model == self._model and (self._places is None or self._inside < self._places)

    def open(self, model: str, *, places: int) -> None:
        """Begin a model's turn."""
        with self._changed:
            self._model, self._places = model, places
            self._changed.notify_all()

    def shut(self, stopping: threading.Event) -> bool:
        """End the turn: let nobody in, wait until everybody has left; False if `stopping` came first."""
        with self._changed:
            self._model = None
            while self._inside and not stopping.is_set():
                self._changed.wait(timeout=0.5)
            return not self._inside

    def close(self) -> None:
        """Let nobody in for good; who waits outside goes away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
