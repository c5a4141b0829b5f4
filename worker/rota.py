"""Which model of a worker has its turn: the one that is loaded, for as long as nobody else waits too long.

Affinity with aging. A turn ends when its model has nothing left to do, or when another one has waited for its
share of the patience; the one that waited longest is next. So a switch is paid for by a whole turn, and with
n models that all have work, none waits longer than the patience, the last jobs of each turn and the loading
left aside. The arguments are in docs/decisions/0017.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

LINGER = 1.0  # seconds without anything new for the model, before its turn ends for another that is loaded
NOTHING_COMES = 5.0  # seconds without a job inside: its messages are lost, and come again in their time
RETRY_BASE, RETRY_LIMIT = 30.0, 600.0  # seconds before a model that could not be loaded is tried again


class Rota:
    """Decides; it knows neither engines nor queues.

    Args:
        models: by name, in the order in which they come first.
        patience: seconds that a model with work may have to wait for its turn while others have work too.
        clock: seconds, monotonic.

    Attributes:
        active: the model that has its turn; None before the first.
    """

    def __init__(
        self, models: Sequence[str], *, patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models = tuple(models)
        self._patience = patience
        self._clock = clock
        self.active: str | None = None
        self._began = self._fed = self._held = clock()
        self._waiting_since: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def begin(self, model: str) -> None:
        """Note that a model's turn begins now, all loaded."""
        self.active = model
        self._began = self._fed = self._held = self._clock()
        self._waiting_since.pop(model, None)
        self._failures.pop(model, None)

    def put_off(self, model: str) -> float:
        """Note that a model could not be loaded; return the seconds until it may be tried again."""
        times = self._failures.get(model, 0)
        seconds = min(RETRY_LIMIT, RETRY_BASE * 2.0 ** min(times, 16))
        self._failures[model] = times + 1
        self._not_before[model] = self._clock() + seconds
        return seconds

    def available(self) -> list[str]:
        """Return the models that may be tried now."""
        now = self._clock()
        return [model for model in self._models if self._not_before.get(model, now) <= now]

    def next(
        self,
        *,
        working: Collection[str],
        holding: int,
        elsewhere: Callable[[], Collection[str]],
        loading: Callable[[str], float] = lambda _model: 0.0,
    ) -> str | None:
        """Return the model whose turn is to begin; None while the active one goes on.

        Args:
            working: the models that have jobs which nobody has begun.
            holding: how many jobs of the active model are held here.
            elsewhere: returns the models that have their turn in another live worker: these wait for nobody.
            loading: returns the seconds that loading a model will take; 0 for one that is loaded.
        """
        now = self._clock()
        self._note(now, working, holding)
        others = [model for model in self.available() if model in working and model != self.active]
        served = elsewhere() if others else ()
        self._waiting_since = {
            model: now if model in served else self._waiting_since.get(model, now) for model in others
        }
        if not others:
            return None
        longest = min(others, key=lambda model: (model in served, self._waiting_since[model]))
        if self._has_nothing_left(now, linger=max(LINGER, min(loading(longest), self._patience))):
            return longest
        waiting = [model for model in others if model not in served]
        share = self._patience / max(1, len(waiting))
        overdue = waiting and now - self._waiting_since[longest] >= share
        return longest if overdue and now - self._began >= share else None

    def _note(self, now: float, working: Collection[str], holding: int) -> None:
        if self.active in working:
            self._fed = now
        if holding:
            self._held = now

    def _has_nothing_left(self, now: float, *, linger: float) -> bool:
        # Waiting for as long as loading takes costs at most twice what it would have cost to know what comes.
        return now - self._fed >= linger or now - self._held >= max(linger, NOTHING_COMES)
