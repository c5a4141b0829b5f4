"""Calls of random content, in the form of a real one, for trials.

The content comes from the form, from the call that was recorded when the model was loaded and from a seed
alone, never from the job that happens to come first.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from worker.coalescing.axes import Axes, Axis, Batch, Branch, Listed, NotAlikeError, Scalar
from worker.coalescing.leaves import UnknownValueError, digest


class Draw:
    """Draws one call after the other."""

    def __init__(self, generator: torch.Generator, *, masks: bool) -> None:
        """Draw masks as well, or leave those that calls have."""
        self._generator, self._masks = generator, masks
        self._drawn = 0

    def __call__(self, axis: Axis, inputs: Any, learned: Any) -> Any:
        """Return a call of the form of `inputs`; `learned` is the one that was recorded."""
        drawn = self._value(axis, inputs, learned)
        self._drawn += 1
        return drawn

    def _value(self, axis: Axis, value: Any, learned: Any) -> Any:
        if isinstance(axis, Branch):
            names = dict(zip(axis.names, axis.parts, strict=True))
            own = {name: self._value(part, value[name], learned[name]) for name, part in names.items()}
            return own if isinstance(value, dict) else type(value)(own.values())
        if isinstance(axis, Listed):
            return axis.kind(self._noise(element, learned[0]) for element in value)
        if isinstance(axis, Batch):
            return self._noise(value, learned)
        if isinstance(axis, Scalar):
            drawn = self._numbers(value, learned)
            return drawn.to(torch.float32) if axis.mixed else drawn
        return value

    def _noise(self, value: Any, learned: Any) -> Any:
        """Draw a tensor anew: vectors as numbers, masks as lengths, what else are floats as noise.

        Whole numbers with more dimensions, like positions, go by the form, and stay.
        """
        if not isinstance(value, torch.Tensor):
            return value
        if value.ndim <= 1:
            return self._numbers(value, learned)
        if _is_mask(learned):
            return self._mask(value) if self._masks else value
        if value.is_floating_point():
            return torch.randn(value.shape, generator=self._generator).to(value)
        return value

    def _mask(self, value: torch.Tensor) -> torch.Tensor:
        """Draw lengths; the first call's is the shortest and the second's the longest, should they matter."""
        tokens = value.shape[-1]
        lengths = torch.randint(1, tokens + 1, (*value.shape[:-1], 1), generator=self._generator)
        lengths = {0: torch.ones_like(lengths), 1: torch.full_like(lengths, tokens)}.get(self._drawn, lengths)
        return (torch.arange(tokens) < lengths).to(value.device, value.dtype)

    def _numbers(self, value: torch.Tensor, learned: Any) -> torch.Tensor:
        """Draw timesteps and the like, up to the recorded call's largest: larger ones may overflow."""
        if value.dtype == torch.bool:
            return value
        drawn = torch.rand(value.shape, generator=self._generator, dtype=torch.float64)
        return (drawn * float(learned.abs().max())).to(value.device, value.dtype)


def masks_of(axis: Axis, value: Any, learned: Any) -> tuple[Hashable, ...]:
    """Return what tells a call's masks from another's; nothing where the recorded call has none."""
    if isinstance(axis, Branch):
        parts = zip(axis.names, axis.parts, strict=True)
        return tuple(mask for name, part in parts for mask in masks_of(part, value[name], learned[name]))
    return (digest(value),) if isinstance(axis, Batch) and _is_mask(learned) else ()


def smallest_calls(inputs: dict[str, Any], axes: Axes) -> list[dict[str, Any]]:
    """Divide a call into as many of its own form as possible: lanes of guidance and of the prompt, usually.

    What has prompts of two lengths in a list cannot be divided: neither alone would be padded as both are.
    """
    lanes = axes.lanes(inputs)
    whole = axes.inputs.form(inputs, lanes)
    for unit in range(1, lanes):
        if lanes % unit or not _divides(axes.outputs, unit):
            continue
        try:
            pieces: list[dict[str, Any]] = axes.inputs.split(inputs, [unit] * (lanes // unit))
            if all(axes.lanes(piece) == unit and axes.inputs.form(piece, unit) == whole for piece in pieces):
                return pieces
        except (NotAlikeError, UnknownValueError):
            continue
    return [inputs]


def _divides(axis: Axis, unit: int) -> bool:
    """Tell whether so many lanes have a whole number of rows, or elements, each."""
    if isinstance(axis, Branch):
        return all(_divides(part, unit) for part in axis.parts)
    return not isinstance(axis, Batch | Listed) or (axis.share * unit).denominator == 1


def _is_mask(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.ndim <= 1:
        return False
    return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())
