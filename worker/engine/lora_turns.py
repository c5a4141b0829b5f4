"""Whose LoRAs are on: sets take turns of many forward passes. Free of tensors, to be read and tested alone.

A switch costs about as much as a forward pass on a fast GPU, so a set keeps its turn until it has nothing to
run, or until others have waited for HOLD passes of it: a set is late by at most so many for each other one.
"""

from __future__ import annotations

from collections.abc import Collection

from storage.loras import LoraSet

HOLD = 64  # forward passes: two jobs of 30 steps after each other


class LoraTurns:
    """The policy: ask `allowed` before each forward pass, and `note` which set it was for."""

    def __init__(self) -> None:
        self._current: LoraSet | None = None
        self._passes = 0  # of the current set since others began to wait, or since its turn began

    def allowed(self, sets: Collection[LoraSet]) -> frozenset[LoraSet]:
        """Return those of these sets, all of which have something to run, that the next pass may be for."""
        every = frozenset(sets)
        if len(every) < 2 or self._current not in every:  # noqa: PLR2004 - nobody to take turns with
            return every
        if self._passes < HOLD:
            return frozenset({self._current})
        return every - {self._current}

    def note(self, loras: LoraSet, *, waiting: bool) -> None:
        """Count a pass of a set, `waiting` if others had something to run, too."""
        if loras != self._current:
            self._current, self._passes = loras, 0
        self._passes = self._passes + 1 if waiting else 0
