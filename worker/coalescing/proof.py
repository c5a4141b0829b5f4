"""What was learned of a denoiser's calls, put to the proof: join real calls, and compare with each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.coalescing.axes import (
    Axes,
    Axis,
    Batch,
    Branch,
    Common,
    Listed,
    NotAlikeError,
    Scalar,
)
from worker.coalescing.call import Modes, run
from worker.coalescing.joining import place, run_joined
from worker.coalescing.learning import learn
from worker.coalescing.leaves import UnknownValueError, equal, leaves
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.digests import in_half_precision

# Relative difference of a joined result from the one alone: rounding, and nothing else.
_NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}
_NEAR_IN_HALF = 3e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One call of the denoiser as a pipeline made it.

    Attributes:
        inputs: its arguments by name.
        modes: what it was made in.
        outputs: what the denoiser returned.
    """

    inputs: dict[str, Any]
    modes: Modes
    outputs: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """Whether and how a model's jobs can share forward passes.

    Attributes:
        axes: of every kind of call that passed the proof.
        samples: a call of each, from the recordings.
        reason: why nothing can be shared, so that one job has to end before the next begins; or "".
    """

    axes: tuple[Axes, ...] = ()
    samples: tuple[Recording, ...] = ()
    reason: str = ""


def learn_sharing(denoiser: Any, pairs: Sequence[tuple[Recording, Recording]]) -> Sharing:
    """Learn the axes of all calls that were recorded, and prove them.

    Args:
        denoiser: the module.
        pairs: the same call with one prompt and with two.
    """
    reason = "the pipeline did not call its denoiser"
    proven: dict[Axis, tuple[Axes, Recording]] = {}
    for one, two in pairs:
        if not equal(run(denoiser, one.inputs, one.modes), one.outputs):
            return Sharing(reason="its denoiser answers the same call differently")
        try:
            axes = learn((one.inputs, one.outputs), (two.inputs, two.outputs))
        except (NotAlikeError, UnknownValueError) as error:
            reason = str(error)
            continue
        if axes.inputs in (known.inputs for known, _ in proven.values()):
            continue
        found = _proven(denoiser, axes, one)
        if found is None:
            reason = "joined calls give another result than each alone"
        else:
            proven[axes.inputs] = found, one
    if not proven:
        return Sharing(reason=reason)
    return Sharing(
        axes=tuple(axes for axes, _ in proven.values()),
        samples=tuple(sample for _, sample in proven.values()),
    )


def varied(inputs: dict[str, Any], axes: Axes) -> dict[str, Any]:
    """Return a call that may be joined with this one and has other content in every lane."""
    generator = torch.Generator().manual_seed(0)
    changed: dict[str, Any] = _varied(axes.inputs, inputs, generator)
    return changed


def _varied(axis: Axis, value: Any, generator: torch.Generator) -> Any:
    if isinstance(axis, Branch):
        parts = dict(zip(axis.names, axis.parts, strict=True))
        if isinstance(value, dict):
            return {name: _varied(parts[name], value[name], generator) for name in value}
        return type(value)(_varied(part, value[name], generator) for name, part in parts.items())
    if isinstance(axis, Listed):
        return axis.kind(_noisy(element, generator) for element in value)
    if isinstance(axis, Batch):
        return _noisy(value, generator)
    return value * 0.5 if isinstance(axis, Scalar) and axis.mixed else value


def _noisy(value: Any, generator: torch.Generator) -> Any:
    """Add noise to a float tensor; halve vectors, which are timesteps; leave masks and whole numbers."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if value.ndim <= 1:
        return value * 0.5
    return value + 0.5 * torch.randn(value.shape, generator=generator).to(value)


def _proven(denoiser: Any, axes: Axes, one: Recording) -> Axes | None:
    """Return the axes with the freest treatment of bare numbers that keeps results; None when none does."""
    scalars = (Scalar(mixed=True), Scalar(mixed=False), Common())
    for candidate in dict.fromkeys(axes.with_scalars(scalar) for scalar in scalars):
        try:
            if _holds(denoiser, candidate, one):
                return candidate
        except (NotAlikeError, UnknownValueError, RuntimeError, TypeError, ValueError, IndexError) as error:
            # A denoiser that cannot take it says so in its own way.
            if is_device_fault(error) or is_out_of_memory(error):
                raise
    return None


def _holds(denoiser: Any, axes: Axes, one: Recording) -> bool:
    """Compare two different calls, joined in both orders, with each alone."""
    calls = [one.inputs, varied(one.inputs, axes)]
    homes = [place(inputs, one.modes, [axes]) for inputs in calls]
    if homes[0] is None or homes[1] is None or homes[0].key != homes[1].key:
        return False
    alone = [run(denoiser, inputs, one.modes) for inputs in calls]
    half = in_half_precision(denoiser)
    for order in ((0, 1), (1, 0, 1)):
        joined = run_joined(denoiser, [calls[i] for i in order], axes, one.modes, width=0)
        if not all(near(result, alone[i], half=half) for result, i in zip(joined, order, strict=True)):
            return False
    return True


def near(ours: Any, right: Any, *, half: bool) -> bool:
    """Tell whether two results differ by rounding only; `half` is whether any weight is in half precision."""
    for a, b in zip(leaves(ours), leaves(right), strict=True):
        if not isinstance(a, torch.Tensor):
            if a != b:
                return False
            continue
        limit = _NEAR_IN_HALF if half else _NEAR.get(a.dtype, _NEAR_IN_HALF)
        if a.shape != b.shape or not bool((a - b).float().norm() <= limit * b.float().norm()):
            return False
    return True
