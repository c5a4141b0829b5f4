"""Turns: a worker of several models renders with one of them at a time, and changes when the rota says so.

A turn ends in this order, so that a kill at any moment leaves no more behind than it does within a turn: the
queue is no longer consumed, the jobs that are held are finished and saved, the next model is loaded if it has
to be, its queue is consumed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from storage.errors import BadInputError, ModelLoadError, StaleWorkerError, UnreachableError
from storage.jobstore import JobStore
from storage.queue import queue_name
from storage.records import WorkerState
from worker.gate import Gate
from worker.rota import Rota
from worker.shelf import Shelf
from worker.surroundings import GaveUpError, Surroundings

log = structlog.get_logger()

LOOK = 0.25  # seconds between two looks at who has work


class Consuming(Protocol):
    """What takes messages from a queue, as `worker.consuming.Consumption`."""

    def change(self, queue: str | None, stopping: threading.Event, *, prefetch: int = 1) -> bool:
        """Consume this queue and no other; False if `stopping` came first."""


class Turning(Protocol):
    """What a worker process is to a switcher."""

    incarnation: str
    jobs: JobStore
    models: tuple[str, ...]
    gate: Gate
    shelf: Shelf
    stopping: threading.Event
    surroundings: Surroundings

    @property
    def concurrency(self) -> int:
        """How many jobs the active model's engine holds."""

    @property
    def draining(self) -> bool:
        """Whether nothing new is to begin."""

    def introduce(self, name: str) -> None:
        """Say in the worker's row whose turn it is."""

    def pause_turns(self) -> bool:
        """Wait until the jobs of a turn have left; False if the process ends."""

    def render_with(self, name: str) -> None:
        """Begin a turn."""

    def give_up(self, reason: str) -> None:
        """Stop the process that cannot go on."""

    def stale(self, error: StaleWorkerError) -> None:
        """End the process that was declared dead."""

    def engine_died(self, error: BaseException) -> None:
        """End the process whose device cannot be trusted."""


class Switcher:
    """Looks who has work, and switches.

    Attributes:
        switches: how many there were.
    """

    def __init__(self, process: Turning, consuming: Consuming, rota: Rota) -> None:
        self._process, self._consuming, self._rota = process, consuming, rota
        self._ailing = False
        self.switches = 0

    def start(self, active: str) -> None:
        """Begin to look, in a thread, while this model has its turn."""
        self._rota.begin(active)
        threading.Thread(target=self.run, name="turns", daemon=True).start()

    def run(self) -> None:
        """Look until the process stops."""
        while not self._process.stopping.wait(LOOK) and not self._process.draining:
            try:
                self.look()
                self._ailing = False
            except StaleWorkerError as error:
                self._process.stale(error)
            except GaveUpError as error:
                self._process.give_up(str(error))
            except UnreachableError as error:
                if not self._ailing:
                    log.warning("cannot see who has work", action="turn", reason=str(error))
                self._ailing = True
            except Exception as error:  # noqa: BLE001 - half-way between two models nothing is certain
                self._process.engine_died(error)
                return

    def look(self) -> None:
        """Switch if another model's turn has come."""
        process = self._process
        chosen = self._rota.next(
            working=process.jobs.models_with_work(process.models),
            holding=process.gate.inside,
            elsewhere=self._elsewhere,
            loading=process.shelf.loading,
        )
        if chosen is not None:
            self.switch(chosen)

    def _elsewhere(self) -> set[str]:
        """Return the models that have their turn in another live worker."""
        return {
            worker.model
            for worker in self._process.jobs.workers(alive_only=True)
            if worker.incarnation != self._process.incarnation
            and worker.state in (WorkerState.STARTING, WorkerState.READY)
        }

    def switch(self, chosen: str) -> None:
        """End the active model's turn and begin another one's."""
        process, before, began = self._process, self._rota.active, time.monotonic()
        if not self._consuming.change(None, process.stopping):
            return
        self._patiently(lambda: process.introduce(chosen))  # before others decide the same
        if not process.pause_turns():
            return
        waited = time.monotonic() - began
        active = self._begin(chosen, before)
        if active is None or not self._consuming.change(
            queue_name(active), process.stopping, prefetch=process.concurrency
        ):
            return
        self._rota.begin(active)
        if active == before:
            return  # the other one could not be loaded, and the log says so
        self.switches += 1
        log.info(
            "switched",
            action="switch",
            model=active,
            before=before,
            finishing=round(waited, 3),
            seconds=round(time.monotonic() - began, 3),
        )

    def _begin(self, chosen: str, before: str | None) -> str | None:
        """Begin the chosen model's turn, or that of another that can be loaded; None if the process ends."""
        while not self._process.draining:
            available = self._rota.available()
            for name in sorted(available, key=lambda name: (name != chosen, name != before)):
                try:
                    self._patiently(partial(self._process.render_with, name))
                except (BadInputError, ModelLoadError) as error:
                    seconds = self._rota.put_off(name)
                    self._process.shelf.note_problem(name, f"{error} (tried again in {seconds:.0f} s)")
                else:
                    return name
            self._process.stopping.wait(LOOK)
        return None

    def _patiently(self, action: Callable[[], None]) -> None:
        self._process.surroundings.patiently(action, what="turn", forever=True)
