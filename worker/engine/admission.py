"""Admission: which requests get the lanes of the next step. Free of tensors, to be read and tested alone.

Requests whose latents have one shape can share a forward pass. Shapes take turns step by step, the one
that waited longest first. Within a shape, priority goes first, then who has started; among those who wait,
who has most forward passes before it, since a long job that starts last leaves lanes idle at the end (Graham
1969, longest processing time first). Each step of waiting counts as one pass more, so that a stream of long
jobs cannot hold a short one back for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

LatentShape = tuple[int, int, int]


class Candidate(Protocol):
    """What admission looks at in a request."""

    @property
    def arrival(self) -> int:
        """Place in the order of submits."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def shape(self) -> LatentShape:
        """(channels, h, w) of the latents."""

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
    """How one latent shape is run.

    Attributes:
        lanes: R, the lanes of a forward pass of this shape.
        alone: one request at a time, from its first step to its last.
    """

    lanes: int
    alone: bool = False


class Admission:
    """The policy: call `choose` once a step with every request that could take part."""

    def __init__(self, plan: Callable[[LatentShape], LanePlan]) -> None:
        """Remember `plan`, which tells how a latent shape is run."""
        self._plan = plan
        self._turn = 0
        self._last_turn: dict[LatentShape, int] = {}
        self._seen: dict[int, int] = {}  # the turn in which a waiting request was first here, by arrival

    def choose(self, candidates: Sequence[C]) -> tuple[list[C], LanePlan | None]:
        """Pick the requests of the next step, all of one shape, in the order in which they take lanes.

        Returns:
            The chosen requests and their shape's plan; an empty list and None when there is no candidate.
        """
        if not candidates:
            self._last_turn.clear()
            self._seen.clear()
            return [], None
        self._seen = {c.arrival: self._seen.get(c.arrival, self._turn) for c in candidates if not c.started}
        shape = self._next_shape(candidates)
        plan = self._plan(shape)
        group = sorted((c for c in candidates if c.shape == shape), key=self._rank)
        if plan.alone:
            # One that started is finished first: two half-rendered requests would help nobody.
            return [min(group, key=lambda c: not c.started)], plan
        return _fill(group, plan.lanes), plan

    def _rank(self, candidate: Candidate) -> tuple[int, bool, int, int]:
        """Smaller goes first."""
        urgency = 0
        if not candidate.started:
            urgency = candidate.evaluations_left + self._turn - self._seen[candidate.arrival]
        return (-candidate.priority, not candidate.started, -urgency, candidate.arrival)

    def _next_shape(self, candidates: Sequence[C]) -> LatentShape:
        """Name the shape whose last turn is longest ago; among new ones, that of the oldest request."""
        oldest = {c.shape: c for c in sorted(candidates, key=_oldest_first, reverse=True)}
        # Forget shapes that left, so that a worker that meets many sizes does not grow.
        self._last_turn = {s: turn for s, turn in self._last_turn.items() if s in oldest}
        shape = min(oldest, key=lambda s: (self._last_turn.get(s, -1), _oldest_first(oldest[s])))
        self._turn += 1
        self._last_turn[shape] = self._turn
        return shape


def _oldest_first(candidate: Candidate) -> tuple[int, int]:
    return (-candidate.priority, candidate.arrival)


def _fill(group: Sequence[C], lanes: int) -> list[C]:
    """Take requests in order while their lanes fit; one that does not fit sits this step out."""
    chosen: list[C] = []
    for candidate in group:
        if candidate.lanes <= lanes:
            chosen.append(candidate)
            lanes -= candidate.lanes
        if not lanes:
            break
    return chosen
