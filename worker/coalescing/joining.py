"""One forward pass for many calls: lay them side by side, run the denoiser, give each its part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.coalescing.axes import Axes, NotAlikeError
from worker.coalescing.call import Modes, run
from worker.coalescing.leaves import UnknownValueError


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a call belongs.

    Attributes:
        axes: the learned axes that fit it.
        lanes: how many it takes.
        key: calls with an equal one can share a forward pass.
    """

    axes: Axes
    lanes: int
    key: Hashable


def place(inputs: dict[str, Any], modes: Modes, learned: Sequence[Axes]) -> Place | None:
    """Find out whom a call can share a forward pass with; None when it is of no form that was learned.

    With gradients nothing is shared: a backward pass would run through all.
    """
    if modes.grad:
        return None
    for number, axes in enumerate(learned):
        try:
            lanes = axes.lanes(inputs)
            return Place(axes=axes, lanes=lanes, key=(number, modes, axes.inputs.form(inputs, lanes)))
        except (NotAlikeError, UnknownValueError):
            continue
    return None


def run_joined(
    denoiser: Any, calls: Sequence[dict[str, Any]], axes: Axes, modes: Modes, *, width: int
) -> list[Any]:
    """Run calls of one key in one forward pass.

    Args:
        denoiser: the module.
        calls: their arguments.
        axes: what was learned of them.
        modes: what they were called in.
        width: lanes of the forward pass; idle ones, copies of the first call's, fill it up.

    Returns:
        What each call would have returned.

    Raises:
        NotAlikeError: when the denoiser's result cannot be divided.
    """
    counts = [axes.lanes(inputs) for inputs in calls]
    joined = axes.inputs.join(calls, counts, max(0, width - sum(counts)))
    return axes.outputs.split(run(denoiser, joined, modes), counts)
