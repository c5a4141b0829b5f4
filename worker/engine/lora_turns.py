"""Whose LoRAs are on: sets take turns of many forward passes. Free of tensors, to be read and tested alone.

A switch costs about as much as a forward pass on a fast GPU, so a set keeps its turn until it has nothing to
run, or until others of its priority have waited for HOLD passes of it: a set is late by at most so many for
each other one. A set that holds a higher priority has the very next pass. Those of lower ones have a turn of
HOLD passes after each LOWER of others, for as long as nobody comes who is more urgent still.
"""

from __future__ import annotations

from collections.abc import Mapping

from storage.loras import LoraSet

HOLD = 64  # forward passes: two jobs of 30 steps after each other
LOWER = 15 * HOLD  # likewise: a sixteenth is left to those who are less urgent


class LoraTurns:
    """The policy: ask `allowed` before each forward pass, and `note` which set it was for."""

    def __init__(self) -> None:
        self._current: LoraSet | None = None
        self._passes = 0  # of the current set since others began to wait, or since its turn began
        self._urgent = 0  # passes since one of a lower priority had its turn, or began to wait
        self._let_in: int | None = None  # the priority that a less urgent set's turn goes before

    def allowed(self, sets: Mapping[LoraSet, int]) -> frozenset[LoraSet]:
        """Return which sets the next pass may be for.

        Args:
            sets: all that have something to run, with the highest priority of each.
        """
        highest, urgent, lower = _divided(sets)
        current = frozenset(loras for loras in sets if loras == self._current)
        holds = current and self._passes < HOLD
        if holds and self._let_in is not None and highest <= self._let_in:
            return current
        if lower and self._urgent >= LOWER:
            return lower
        if holds and current <= urgent:
            return current
        return urgent - current or urgent

    def note(self, loras: LoraSet, sets: Mapping[LoraSet, int]) -> None:
        """Count a pass of a set, one of `sets` as `allowed` was asked about."""
        highest, urgent, lower = _divided(sets)
        if loras != self._current:
            self._current, self._passes = loras, 0
        waited_for = loras in lower or len(urgent) > 1
        self._passes = self._passes + 1 if waited_for else 0
        self._let_in = highest if loras in lower else None
        self._urgent = self._urgent + 1 if lower and loras in urgent else 0


def _divided(sets: Mapping[LoraSet, int]) -> tuple[int, frozenset[LoraSet], frozenset[LoraSet]]:
    """Return the highest priority, the sets that have it, and all others."""
    highest = max(sets.values())
    urgent = frozenset(loras for loras, priority in sets.items() if priority == highest)
    return highest, urgent, frozenset(sets) - urgent
