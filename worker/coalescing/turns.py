"""Whose calls run in the next forward pass. Free of tensors, to be read and tested alone.

Calls of one key are a group and share a forward pass. Groups take turns (`worker.engine.group_turns`): so a
job whose calls agree with nobody's waits one forward pass per other group of its priority. A group waits from
its first call on, so two jobs that call with prompts of two lengths and then with the same negative prompt
meet there: the first one's second call is behind the second one's first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from storage.loras import LoraSet
from worker.engine.group_turns import GroupTurns, Standing


class Waiting(Protocol):
    """What is looked at in a call."""

    key: Hashable
    lanes: int
    since: int | None  # the turn in which it was first seen

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first."""

    @property
    def loras(self) -> LoraSet:
        """What is turned on in the denoiser for it; the same for all of one key."""


W = TypeVar("W", bound=Waiting)


class Turns:
    """The policy: call `choose` once a step with every call that waits."""

    def __init__(self) -> None:
        self._turns = GroupTurns()
        self._last_turn: dict[Hashable, int] = {}

    def choose(self, calls: Sequence[W], *, width: Callable[[Hashable], int]) -> list[W]:
        """Pick the calls of the next forward pass, all of one key.

        Those of many lanes stand first: so each stands at a multiple of its own lanes, as it was tried out.

        Args:
            calls: at least one.
            width: the lanes of a forward pass of a key; the first call runs even if it takes more.
        """
        for call in calls:
            call.since = self._turns.count if call.since is None else call.since
        oldest = {call.key: call for call in sorted(calls, key=_waited_longest, reverse=True)}
        # Forget groups that left, so that a worker that meets many sizes does not grow.
        self._last_turn = {key: turn for key, turn in self._last_turn.items() if key in oldest}
        key = self._turns.next(
            {
                key: Standing(
                    priority=max(-other.rank[0] for other in calls if other.key == key),
                    waits=self._waits_since(call),
                    loras=call.loras,
                )
                for key, call in oldest.items()
            }
        )
        self._last_turn[key] = self._turns.count
        chosen: list[W] = []
        free = width(key)
        for call in sorted((call for call in calls if call.key == key), key=_rank):
            if call.lanes <= free or not chosen:
                chosen.append(call)
                free -= call.lanes
        return sorted(chosen, key=lambda call: -call.lanes)

    def _waits_since(self, oldest: Waiting) -> tuple[int, tuple[int, int]]:
        """A group's last turn counts too: those whom it left out must not keep all others waiting."""
        return max(oldest.since or 0, self._last_turn.get(oldest.key, 0)), oldest.rank


def _waited_longest(call: Waiting) -> tuple[int, tuple[int, int]]:
    return call.since or 0, call.rank


def _rank(call: Waiting) -> tuple[int, int]:
    return call.rank
