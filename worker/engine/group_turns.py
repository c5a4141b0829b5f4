"""Which group has the next forward pass, of those that cannot share one. Free of tensors, as admission is.

Groups take turns step by step, those that hold the highest priority first, then the one that waited longest;
now and then the turn is that of the group that waited longest, whatever its priority. Groups of one set of
LoRAs take such turns among themselves, while their set has its own, which is a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from storage.loras import LoraSet
from worker.engine.lora_turns import LoraTurns

TURNS_A_ROUND = 16  # the last of them goes by waiting alone, the others by priority first
K = TypeVar("K")


class Standing(NamedTuple):
    """What a group's turn goes by.

    Attributes:
        priority: the highest that one of its members has.
        waits: smaller for whoever waited longer; comparable among all groups.
        loras: what is turned on in the model for it.
    """

    priority: int
    waits: Any
    loras: LoraSet


class GroupTurns:
    """The policy: ask `next` before each forward pass.

    Attributes:
        count: the turns so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lora_turns = LoraTurns()

    def next(self, groups: Mapping[K, Standing]) -> K:
        """Return the group whose turn it is, and count the turn.

        Args:
            groups: all that have something to run, at least one.
        """
        sets: dict[LoraSet, int] = {}
        for group in groups.values():
            sets[group.loras] = max(group.priority, sets.get(group.loras, group.priority))
        allowed = self._lora_turns.allowed(sets)
        chosen = _longest(groups, lambda group: group.loras in allowed)
        loras = groups[chosen].loras
        self.count += 1
        if self.count % TURNS_A_ROUND:
            chosen = _longest(groups, lambda group: group.loras == loras and group.priority == sets[loras])
        self._lora_turns.note(loras, sets)
        return chosen


def _longest(groups: Mapping[K, Standing], eligible: Callable[[Standing], bool]) -> K:
    """Return which of the eligible groups waited longest."""
    return min((key for key, group in groups.items() if eligible(group)), key=lambda key: groups[key].waits)
