"""The models of one worker process that are on its device, each with its engine.

As many as memory allows, or `--max-loaded`: to make room for another, the least recently used go first.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from storage.errors import BadInputError, ModelLoadError
from storage.models import parse_model
from storage.served import ServedModel
from storage.settings import Settings
from worker.coalescing.engines import Engines
from worker.device_faults import is_out_of_memory
from worker.engine.tuning import Tunings
from worker.introduction import served_model_of
from worker.loading import open_engine
from worker.models import memory
from worker.models.device import choose_device
from worker.orders import ChildOrder

log = structlog.get_logger()

CLOSING = 60.0  # seconds that the idle engine of a model gets to end


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model on the device.

    Attributes:
        engine: it runs, with nothing to do unless the model has its turn.
        threads: of torch, that its forward passes are run with.
    """

    engine: Engines
    threads: int


class Shelf:
    """Loads models and takes them away again.

    Args:
        order: what the supervisor asked for.
        settings: of this process.
        tunings: see `open_engine`.
        on_death: see `Engine`.
    """

    def __init__(
        self,
        order: ChildOrder,
        settings: Settings,
        *,
        tunings: Tunings,
        on_death: Callable[[BaseException], None],
    ) -> None:
        options = order.options
        references = [parse_model(text) for text in options.models]
        self._orders = {
            reference.name: dataclasses.replace(
                order, options=dataclasses.replace(options, model=str(reference), more_models=())
            )
            for reference in references
        }
        self._references = {reference.name: reference for reference in references}
        self._settings, self._on_death = settings, on_death
        self._most = options.max_loaded
        self._tunings = _Undisturbed(tunings, self._clear) if len(references) > 1 else tunings
        self._threads = torch.get_num_threads()
        self._lock = threading.RLock()
        self._loaded: dict[str, Loaded] = {}  # the least recently used first
        self._known = {name: ServedModel(name=name) for name in self._references}
        self._seconds: dict[str, float] = {}  # that loading took the last time

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models that may be asked for."""
        return tuple(self._references)

    @property
    def known(self) -> tuple[ServedModel, ...]:
        """What is known of them, for the worker's row."""
        return tuple(self._known.values())

    def has(self, name: str) -> bool:
        """Whether a model is loaded."""
        return name in self._loaded

    def loading(self, name: str) -> float:
        """Return the seconds that it takes to have a model: 0 where it is loaded, or nobody knows yet."""
        return 0.0 if name in self._loaded else self._seconds.get(name, 0.0)

    def take(self, name: str) -> Engines:
        """Return a model's engine, to be used until another one is taken; load the model where it is not.

        Raises:
            ModelLoadError: the model cannot be loaded.
            BadInputError: the options cannot be used with this device or model.
        """
        with self._lock:
            loaded = self._loaded.pop(name, None) or self._load(name)
            self._loaded[name] = loaded
        # Of the process: threads that start from now on take it over, those of other engines keep theirs.
        _use_threads(loaded.threads)
        return loaded.engine

    def first(self) -> str:
        """Load the first model that can be loaded and return its name; if none can, raise the first error."""
        errors: list[BadInputError | ModelLoadError] = []
        for name in self.models:
            try:
                self.take(name)
            except (BadInputError, ModelLoadError) as error:
                self.note_problem(name, str(error))
                errors.append(error)
            else:
                return name
        raise errors[0]

    def note_problem(self, name: str, problem: str) -> None:
        """Remember why a model could not be loaded, until it can."""
        log.error("a model cannot be loaded", action="load", model=name, reason=problem)
        self._known[name] = dataclasses.replace(self._known[name], problem=problem)

    def make_room(self) -> bool:
        """Unload the least recently used model but the one in use; False where there is no other."""
        with self._lock:
            return len(self._loaded) > 1 and self._unload_oldest()

    def close(self) -> None:
        """End all engines."""
        with self._lock:
            for loaded in self._loaded.values():
                loaded.engine.close(timeout=CLOSING)

    def _load(self, name: str) -> Loaded:
        while self._loaded and not self._has_room_for(name):
            self._unload_oldest()
        while True:
            crowded = bool(self._loaded)  # until now: measuring may clear the device meanwhile
            try:
                return self._open(name)
            except Exception as error:
                if not _is_too_large(error) or not crowded:
                    raise
            if self._loaded:  # outside of the except, where the failed one would still hold its memory
                self._unload_oldest()

    def _open(self, name: str) -> Loaded:
        _use_threads(self._threads)  # what another model chose is not for this one
        began = time.monotonic()
        engine = open_engine(
            self._orders[name],
            self._settings,
            tunings=self._tunings,
            on_death=self._on_death,
            make_room=self.make_room,
            alone=len(self._references) == 1,
            crowded=bool(self._loaded),
        )
        engine.start()
        self._known[name] = served_model_of(engine, name=name)
        self._seconds[name] = time.monotonic() - began
        return Loaded(engine=engine, threads=torch.get_num_threads())

    def _has_room_for(self, name: str) -> bool:
        if self._most is not None:
            return len(self._loaded) < self._most
        device = choose_device(self._orders[name].device)
        memory.give_back(device)
        room = memory.room(device)
        return room is None or (self._known[name].bytes or memory.files_bytes(self._references[name])) <= room

    def _unload_oldest(self) -> bool:
        name = next(iter(self._loaded))
        device = self._loaded[name].engine.model.device
        self._loaded.pop(name).engine.close(timeout=CLOSING)
        memory.give_back(device)
        self._known[name] = dataclasses.replace(self._known[name], loaded=False)
        log.info("model unloaded", action="unload", model=name, bytes=self._known[name].bytes)
        return True

    def _clear(self) -> None:
        """Unload all, on a device whose memory decides how a model is run there."""
        while self._loaded and next(iter(self._loaded.values())).engine.model.device.type == "cuda":
            self._unload_oldest()


class _Undisturbed:
    """Tunings that are measured with the whole device: no part of them is what other models take there."""

    def __init__(self, tunings: Tunings, clear: Callable[[], None]) -> None:
        self._tunings, self._clear = tunings, clear

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Tunings.tuning`; whoever hears None measures next."""
        kept = self._tunings.tuning(facts)
        if kept is None:
            self._clear()
        return kept

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tunings.keep_tuning`."""
        return self._tunings.keep_tuning(facts, tuning)


def _use_threads(number: int) -> None:
    if torch.get_num_threads() != number:  # torch runs differently once it was told, even the same number
        torch.set_num_threads(number)


def _is_too_large(error: BaseException | None) -> bool:
    """Tell whether memory ran out, however that was put into words."""
    return error is not None and (is_out_of_memory(error) or _is_too_large(error.__cause__))
