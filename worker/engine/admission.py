"""Admission: which requests get the lanes of the next step. Free of tensors, to be read and tested alone.

Requests whose latents have one shape, whose prompts have one length and whose LoRAs are the same can share a
forward pass: they are a group. Groups take turns step by step, the one that waited longest first; those of
other LoRAs only now and then (`worker.engine.lora_turns`). Within a group, priority goes first,
then who has started; among those who wait, who has most forward passes before it, since a long job that
starts last leaves lanes idle at the end (Graham 1969, longest processing time first). Each step of waiting
counts as one pass more, so that a stream of long jobs cannot hold a short one back for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from storage.loras import LoraSet
from worker.engine.lora_turns import LoraTurns

LatentShape = tuple[int, int, int]
Parts = tuple[tuple[str, int], ...]  # (name of a layer, lanes that it is called for at a time), sorted


class Group(NamedTuple):
    """What requests that share a forward pass have in common.

    Attributes:
        shape: (channels, h, w) of their latents.
        tokens: the length of their prompt_embeds, the model's own or a multiple of it.
        loras: what is turned on in the model for them.
    """

    shape: LatentShape
    tokens: int
    loras: LoraSet = ()

    @property
    def kind(self) -> Group:
        """The group apart from its LoRAs' weights, which change numbers and not the work to be done."""
        return self._replace(loras=tuple((name, 1.0) for name, _ in self.loras)) if self.loras else self


class Candidate(Protocol):
    """What admission looks at in a request."""

    @property
    def arrival(self) -> int:
        """Place in the order of submits."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def group(self) -> Group:
        """Whom it can share a forward pass with."""

    @property
    def lanes(self) -> int:
        """Lanes that its next step needs, 1 or 2."""

    @property
    def started(self) -> bool:
        """Whether it had lanes before."""

    @property
    def evaluations_left(self) -> int:
        """Forward passes that it still needs."""


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True, kw_only=True, slots=True)
class LanePlan:
    """How one group is run.

    Attributes:
        lanes: R, the most lanes of a forward pass of this group.
        alone: one request at a time, from its first step to its last.
        narrower: fewer lanes with which a request's bytes are those of R, in ascending order.
        parts: layers of the UNet, by name, that are called for so many lanes at a time.
    """

    lanes: int
    alone: bool = False
    narrower: tuple[int, ...] = ()
    parts: Parts = ()

    @property
    def record(self) -> dict[str, int | str]:
        """What of it determines a picture's bytes; the layers in parts as a hash, where there are any."""
        if not self.parts:
            return {"lanes": self.lanes}
        return {"lanes": self.lanes, "parts": hashlib.sha256(repr(self.parts).encode()).hexdigest()[:12]}

    def width(self, needed: int) -> int:
        """Return the fewest lanes that hold so many and change no request's bytes."""
        return next((lanes for lanes in self.narrower if lanes >= needed), self.lanes)


class Admission:
    """The policy: call `choose` once a step with every request that could take part."""

    def __init__(self, plan: Callable[[Group], LanePlan]) -> None:
        """Remember `plan`, which tells how a group is run."""
        self._plan = plan
        self._turn = 0
        self._lora_turns = LoraTurns()
        self._last_turn: dict[Group, int] = {}
        self._seen: dict[int, int] = {}  # the turn in which a waiting request was first here, by arrival

    def choose(self, candidates: Sequence[C]) -> tuple[list[C], LanePlan | None]:
        """Pick the requests of the next step, all of one group, in the order in which they take lanes.

        Returns:
            The chosen requests and their group's plan; an empty list and None when there is no candidate.
        """
        if not candidates:
            self._last_turn.clear()
            self._seen.clear()
            return [], None
        self._seen = {c.arrival: self._seen.get(c.arrival, self._turn) for c in candidates if not c.started}
        group = self._next_group(candidates)
        plan = self._plan(group)
        members = sorted((c for c in candidates if c.group == group), key=self._rank)
        if plan.alone:
            # One that started is finished first: two half-rendered requests would help nobody.
            return [min(members, key=lambda c: not c.started)], plan
        return _fill(members, plan.lanes), plan

    def _rank(self, candidate: Candidate) -> tuple[int, bool, int, int]:
        """Smaller goes first."""
        urgency = 0
        if not candidate.started:
            urgency = candidate.evaluations_left + self._turn - self._seen[candidate.arrival]
        return (-candidate.priority, not candidate.started, -urgency, candidate.arrival)

    def _next_group(self, candidates: Sequence[C]) -> Group:
        """Name the group whose last turn is longest ago; among new ones, that of the oldest request."""
        oldest = {c.group: c for c in sorted(candidates, key=_oldest_first, reverse=True)}
        # Forget groups that left, so that a worker that meets many sizes does not grow.
        self._last_turn = {g: turn for g, turn in self._last_turn.items() if g in oldest}
        sets = {group.loras for group in oldest}
        allowed = self._lora_turns.allowed(sets)
        able = [group for group in oldest if group.loras in allowed]
        group = min(able, key=lambda g: (self._last_turn.get(g, -1), _oldest_first(oldest[g])))
        self._lora_turns.note(group.loras, waiting=len(sets) > 1)
        self._turn += 1
        self._last_turn[group] = self._turn
        return group


def _oldest_first(candidate: Candidate) -> tuple[int, int]:
    return (-candidate.priority, candidate.arrival)


def _fill(members: Sequence[C], lanes: int) -> list[C]:
    """Take requests in order while their lanes fit; one that does not fit sits this step out."""
    chosen: list[C] = []
    for candidate in members:
        if candidate.lanes <= lanes:
            chosen.append(candidate)
            lanes -= candidate.lanes
        if not lanes:
            break
    return chosen
