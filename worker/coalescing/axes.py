"""What of a denoiser's call is a batch: how calls are laid side by side, and how their result is divided."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from worker.coalescing.leaves import digest, form_of


class NotAlikeError(Exception):
    """Two values have no common form; the message says where they differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Common:
    """The same for every lane: calls share a forward pass only if it is equal."""

    def form(self, value: Any, _lanes: int) -> Hashable:
        """Return what two calls have to agree on."""
        return digest(value)

    def join(self, values: Sequence[Any], _counts: Sequence[int], _spare: int) -> Any:
        """Return one value for all."""
        return values[0]

    def split(self, value: Any, counts: Sequence[int]) -> list[Any]:
        """Return it for each of the calls."""
        return [value] * len(counts)

    def lanes(self, _value: Any) -> int | None:
        """Say how many lanes it shows; it does not."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scalar:
    """One number for all lanes of a call, like a UNet's timestep: a number per lane says the same.

    Attributes:
        mixed: whole numbers and others go together, as float32.
    """

    mixed: bool = True

    def form(self, value: Any, _lanes: int) -> Hashable:
        """Return what two calls have to agree on: not the number."""
        if not is_number(value):
            raise NotAlikeError("a number became something else")
        return value.device, None if self.mixed else value.dtype

    def join(self, values: Sequence[Any], counts: Sequence[int], spare: int) -> Any:
        """Return a vector, a number per lane."""
        numbers = [value.reshape(1).expand(count) for value, count in zip(values, counts, strict=True)]
        numbers.append(values[0].reshape(1).expand(spare))
        if self.mixed:
            numbers = [number if number.is_floating_point() else number.float() for number in numbers]
        return torch.cat(numbers)

    def split(self, value: Any, counts: Sequence[int]) -> list[Any]:
        """Return it for each of the calls."""
        return [value] * len(counts)

    def lanes(self, _value: Any) -> int | None:
        """Say how many lanes it shows; it does not."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A tensor with a batch axis.

    Attributes:
        axis: the one that grew.
        share: its size per lane.
    """

    axis: int
    share: Fraction

    def form(self, value: Any, lanes: int) -> Hashable:
        """Return what two calls have to agree on: all sizes but the batch's."""
        if not isinstance(value, torch.Tensor) or value.ndim <= self.axis:
            raise NotAlikeError("a tensor became something else")
        sizes = list(value.shape)
        if sizes.pop(self.axis) != self.share * lanes:
            raise NotAlikeError("a batch is not as large as the others")
        return tuple(sizes), value.dtype, value.device

    def join(self, values: Sequence[Any], _counts: Sequence[int], spare: int) -> Any:
        """Lay the calls' batches side by side, and after them as many lanes more as are spare."""
        parts = list(values)
        if spare:
            rows = torch.arange(int(self.share * spare), device=values[0].device)
            parts.append(values[0].index_select(self.axis, rows % values[0].shape[self.axis]))
        return torch.cat(parts, dim=self.axis) if len(parts) > 1 else parts[0]

    def split(self, value: Any, counts: Sequence[int]) -> list[Any]:
        """Return each call's part, as a tensor of its own."""
        sizes = [int(self.share * count) for count in counts]
        if value.shape[self.axis] < sum(sizes):
            raise NotAlikeError("the output's batch is smaller than the input's")
        parts = value.split([*sizes, value.shape[self.axis] - sum(sizes)], dim=self.axis)
        return [part.clone() for part in parts[:-1]]

    def lanes(self, value: Any) -> int | None:
        """Say how many lanes it shows, where that is its size."""
        if self.share != 1 or not isinstance(value, torch.Tensor) or value.ndim <= self.axis:
            return None
        return int(value.shape[self.axis])


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A list with an element, or several, per lane.

    Attributes:
        kind: list or tuple.
        share: elements per lane.
    """

    kind: Any
    share: Fraction

    def form(self, value: Any, lanes: int) -> Hashable:
        """Return what two calls have to agree on: which forms of elements occur, in whatever order.

        So the longest of all calls' elements is the longest of each, and padding to it changes nothing.
        """
        if type(value) is not self.kind or len(value) != self.share * lanes:
            raise NotAlikeError("a list is not as long as the others")
        return frozenset(form_of(element) for element in value)

    def join(self, values: Sequence[Any], _counts: Sequence[int], spare: int) -> Any:
        """Chain the lists, and after them as many elements more as are spare."""
        chained = [element for value in values for element in value]
        chained += [values[0][i % len(values[0])] for i in range(int(self.share * spare))]
        return self.kind(chained)

    def split(self, value: Any, counts: Sequence[int]) -> list[Any]:
        """Return each call's part."""
        parts, start = [], 0
        for count in counts:
            end = start + int(self.share * count)
            parts.append(self.kind(value[start:end]))
            start = end
        if start > len(value):
            raise NotAlikeError("the output's list is shorter than the input's")
        return parts

    def lanes(self, value: Any) -> int | None:
        """Say how many lanes it shows, where that is its length."""
        return len(value) if self.share == 1 and type(value) is self.kind else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """A dict, list, tuple or output of diffusers, with the axes of what is in it.

    Attributes:
        kind: its type.
        names: keys or positions.
        parts: their axes, in the same order.
    """

    kind: Any
    names: tuple[Any, ...]
    parts: tuple[Axis, ...]

    def form(self, value: Any, lanes: int) -> Hashable:
        """Return what two calls have to agree on."""
        if type(value) is not self.kind or names_of(value) != self.names:
            raise NotAlikeError("an argument has other parts")
        return tuple(part.form(value[name], lanes) for name, part in self._named())

    def join(self, values: Sequence[Any], counts: Sequence[int], spare: int) -> Any:
        """Join part by part."""
        return self._make(
            [part.join([value[name] for value in values], counts, spare) for name, part in self._named()]
        )

    def split(self, value: Any, counts: Sequence[int]) -> list[Any]:
        """Split part by part."""
        if type(value) is not self.kind or names_of(value) != self.names:
            raise NotAlikeError("the output has other parts")
        columns = [part.split(value[name], counts) for name, part in self._named()]
        return [self._make([column[row] for column in columns]) for row in range(len(counts))]

    def lanes(self, value: Any) -> int | None:
        """Say how many lanes the first part shows that does."""
        if type(value) is not self.kind or names_of(value) != self.names:
            raise NotAlikeError("an argument has other parts")
        found = (part.lanes(value[name]) for name, part in self._named())
        return next((lanes for lanes in found if lanes is not None), None)

    def _named(self) -> list[tuple[Any, Axis]]:
        return list(zip(self.names, self.parts, strict=True))

    def _make(self, values: list[Any]) -> Any:
        if not issubclass(self.kind, dict):
            return self.kind(values)
        named = dict(zip(self.names, values, strict=True))
        return named if self.kind is dict else self.kind(**named)  # an output of diffusers


Axis = Common | Scalar | Batch | Listed | Branch


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The axes of one kind of call.

    Attributes:
        inputs: of its arguments, by name.
        outputs: of what it returns.
    """

    inputs: Axis
    outputs: Axis

    def lanes(self, inputs: Any) -> int:
        """Count a call's lanes, or raise NotAlikeError."""
        found = self.inputs.lanes(inputs)
        if not found:
            raise NotAlikeError("no argument shows how many lanes there are")
        return found

    def with_scalars(self, scalar: Axis) -> Axes:
        """Return the same with another treatment of bare numbers."""
        return replace(self, inputs=_replaced(self.inputs, scalar))


def _replaced(axis: Axis, scalar: Axis) -> Axis:
    if isinstance(axis, Branch):
        return replace(axis, parts=tuple(_replaced(part, scalar) for part in axis.parts))
    return scalar if isinstance(axis, Scalar) else axis


def names_of(value: Any) -> tuple[Any, ...]:
    """Return the keys of a dict, or the positions in a list or tuple."""
    return tuple(value) if isinstance(value, dict) else tuple(range(len(value)))


def is_number(value: Any) -> bool:
    """Tell whether a value is a tensor of one number."""
    return (
        isinstance(value, torch.Tensor)
        and value.ndim <= 1
        and value.numel() == 1
        and value.dtype != torch.bool
    )
