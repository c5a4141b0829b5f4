"""Admission: which requests get the lanes of the next step. Free of tensors, to be read and tested alone.

Requests whose latents have one shape, whose prompts have one length and whose LoRAs are the same can share a
forward pass: they are a group. Groups take turns (`worker.engine.group_turns`). Within a group, priority goes
first, then who has started; among those who wait, who has most forward passes before it, since a long job
that starts last leaves lanes idle at the end (Graham 1969, longest processing time first).

Nothing is held back for good, but by more urgent work of its own group:
- Each step of waiting counts as one pass more, so a stream of long jobs passes a short one only for a while.
- Lanes too few for the next request go to some that rank after it; then they stay free until it fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from storage.loras import LoraSet
from worker.engine.group_turns import GroupTurns, Standing

LatentShape = tuple[int, int, int]
Parts = tuple[tuple[str, int], ...]  # (name of a layer, lanes that it is called for at a time), sorted

OVERTAKEN = 16  # starts that a request which does not fit lets by: keeping lanes free for it leaves one idle


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
        short: whether it is one for fewer lanes than were wanted, for want of memory.
    """

    lanes: int
    alone: bool = False
    narrower: tuple[int, ...] = ()
    parts: Parts = ()
    short: bool = False

    @property
    def record(self) -> dict[str, int | str]:
        """What of it determines a picture's bytes; the layers in parts as a hash, where there are any."""
        if not self.parts:
            return {"lanes": self.lanes}
        return {"lanes": self.lanes, "parts": hashlib.sha256(repr(self.parts).encode()).hexdigest()[:12]}

    def width(self, needed: int) -> int:
        """Return the fewest lanes that hold so many and change no request's bytes."""
        return next((lanes for lanes in self.narrower if lanes >= needed), self.lanes)


@dataclass(kw_only=True, slots=True)
class _Known:
    """What the policy remembers of a request.

    Attributes:
        since: the turn in which it was first here.
        overtaken: how many that rank after it have started while it was next and did not fit.
        start: its place in the order in which requests started.
    """

    since: int
    overtaken: int = 0
    start: int = 0


class Admission:
    """The policy: call `choose` once a step with every request that could take part."""

    def __init__(self, plan: Callable[[Group], LanePlan]) -> None:
        """Remember `plan`, which tells how a group is run."""
        self._plan = plan
        self._turns = GroupTurns()
        self._starts = 0
        # The turn since which a group waits; True after one of its own, so that a new group goes before it.
        self._waits: dict[Group, tuple[int, bool]] = {}
        self._known: dict[int, _Known] = {}  # by arrival

    def choose(self, candidates: Sequence[C]) -> tuple[list[C], LanePlan | None]:
        """Pick the requests of the next step, all of one group, in the order in which they take lanes.

        Returns:
            The chosen requests and their group's plan; an empty list and None when there is no candidate.
        """
        # Forget who left, requests and groups, so that a worker that meets many does not grow.
        self._known = {
            c.arrival: self._known.get(c.arrival) or _Known(since=self._turns.count) for c in candidates
        }
        self._waits = {c.group: self._waits.get(c.group, (self._turns.count, False)) for c in candidates}
        if not candidates:
            return [], None
        group = self._next_group(candidates)
        plan = self._plan(group)
        members = sorted((c for c in candidates if c.group == group), key=self._rank)
        if plan.alone:
            # One that started is finished first: two half-rendered requests would help nobody.
            return [min(members, key=lambda c: not c.started)], plan
        chosen = self._fill(members, plan.lanes)
        for candidate in chosen:
            if not candidate.started:
                self._starts += 1
                self._known[candidate.arrival].start = self._starts
        return chosen, plan

    def _rank(self, candidate: Candidate) -> tuple[int, bool, int, int]:
        """Smaller goes first; who has started keeps its place, so that nothing is moved for nothing."""
        known = self._known[candidate.arrival]
        urgency = candidate.evaluations_left + self._turns.count - known.since
        order = known.start if candidate.started else -urgency
        return (-candidate.priority, not candidate.started, order, candidate.arrival)

    def _fill(self, members: Sequence[C], lanes: int) -> list[C]:
        """Take requests in order while their lanes fit; one that does not fit sits this step out."""
        chosen: list[C] = []
        left_out: _Known | None = None  # the first that waits and does not fit
        kept = False  # what is free from here on is for one that was overtaken too often
        for candidate in members:
            waits = not candidate.started
            if candidate.lanes > lanes:
                known = self._known[candidate.arrival]
                kept |= waits and known.overtaken >= OVERTAKEN
                left_out = left_out or (known if waits else None)
            elif not (waits and kept):
                chosen.append(candidate)
                lanes -= candidate.lanes
                if waits and left_out:
                    left_out.overtaken += 1
        return chosen

    def _next_group(self, candidates: Sequence[C]) -> Group:
        """Name the group whose turn it is, and count the turn."""
        oldest = {c.group: c for c in sorted(candidates, key=_oldest_first, reverse=True)}
        group = self._turns.next(
            {
                group: Standing(
                    priority=first.priority,
                    waits=(self._waits[group], _oldest_first(first)),
                    loras=group.loras,
                )
                for group, first in oldest.items()
            }
        )
        self._waits[group] = (self._turns.count, True)
        return group


def _oldest_first(candidate: Candidate) -> tuple[int, int]:
    return (-candidate.priority, candidate.arrival)
