"""What was learned of a denoiser's calls, put to the proof: join real calls, and compare with each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
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
from worker.coalescing.leaves import UnknownValueError
from worker.engine.faults import is_device_fault, is_out_of_memory

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What forward passes of one width showed.

    Attributes:
        exact: whether a call's result was bitwise the same in any company, at any place.
        lanes_per_second: of the fastest pass.
    """

    exact: bool
    lanes_per_second: float


def learn_sharing(denoiser: Any, pairs: Sequence[tuple[Recording, Recording]]) -> Sharing:
    """Learn the axes of all calls that were recorded, and prove them.

    Args:
        denoiser: the module.
        pairs: the same call with one prompt and with two.
    """
    reason = "the pipeline did not call its denoiser"
    proven: dict[Axis, tuple[Axes, Recording]] = {}
    for one, two in pairs:
        if not _equal(run(denoiser, one.inputs, one.modes), one.outputs):
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


def try_width(denoiser: Any, sample: Recording, axes: Axes, width: int) -> Trial:
    """Run forward passes of one width that show whether a call's result depends on its company.

    The call at every other place, first and then second, among calls of other content, then among idle lanes.

    Raises:
        torch.OutOfMemoryError: when that many lanes do not fit.
        NotAlikeError: when the result cannot be divided.
    """
    lanes = axes.lanes(sample.inputs)
    places = max(1, width // lanes)
    other = varied(sample.inputs, axes)
    rows = [[sample.inputs if i % 2 == first else other for i in range(places)] for first in (0, 1)]
    rows = [row for row in rows if any(inputs is sample.inputs for inputs in row)] + [[sample.inputs]]
    results, seconds = [], []
    for row in rows:
        began = perf_counter()
        outputs = run_joined(denoiser, row, axes, sample.modes, width=width)
        results += [result for result, inputs in zip(outputs, row, strict=True) if inputs is sample.inputs]
        _wait_for(results[-1])
        seconds.append(perf_counter() - began)
    exact = all(_equal(results[0], result) for result in results)
    return Trial(exact=exact, lanes_per_second=width / min(seconds))


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
    for order in ((0, 1), (1, 0, 1)):
        joined = run_joined(denoiser, [calls[i] for i in order], axes, one.modes, width=0)
        if not all(_near(result, alone[i]) for result, i in zip(joined, order, strict=True)):
            return False
    return True


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for element in value.values() for leaf in _leaves(element)]
    if isinstance(value, list | tuple):
        return [leaf for element in value for leaf in _leaves(element)]
    return [value]


def _equal(ours: Any, theirs: Any) -> bool:
    """Tell whether two results are bitwise the same."""
    pairs = list(zip(_leaves(ours), _leaves(theirs), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _near(ours: Any, right: Any) -> bool:
    """Tell whether two results differ by rounding only."""
    for a, b in zip(_leaves(ours), _leaves(right), strict=True):
        if not isinstance(a, torch.Tensor):
            if a != b:
                return False
            continue
        limit = _NEAR.get(a.dtype, _NEAR_IN_HALF)
        if a.shape != b.shape or not bool((a - b).float().norm() <= limit * b.float().norm()):
            return False
    return True


def _wait_for(value: Any) -> None:
    """Wait until the device has finished a result."""
    tensors = (leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor))
    last = next(tensors, None)
    if last is not None and last.is_cuda:
        torch.cuda.synchronize(last.device)
