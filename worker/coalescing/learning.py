"""Which axes of a denoiser's call are batches, learned by looking: call it with one prompt and with two.

What grew is a batch axis. A pipeline that calls its denoiser with lists (Z-Image), with positions of tokens
(Flux) or with a bare timestep (every UNet) needs no word here. What was learned wrongly is found out by
`worker.coalescing.proof`, which joins real calls and compares; it may cost sharing, never a picture.
"""

from __future__ import annotations

from fractions import Fraction
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
    is_number,
    names_of,
)
from worker.coalescing.leaves import digest

TIMES = 2  # prompts of the larger recording


def learn(one: tuple[Any, Any], two: tuple[Any, Any]) -> Axes:
    """Compare a call's arguments and result, `(inputs, outputs)`, with those of twice as many prompts.

    Raises:
        NotAlikeError: when they do not differ by batch axes only; the message says where.
    """
    sizes = _sizes(one[0], two[0])
    if not sizes:
        raise NotAlikeError("nothing in the call grew with the number of prompts")
    lead = sizes[0]
    return Axes(
        inputs=_learn(one[0], two[0], lead, "the call"), outputs=_learn(one[1], two[1], lead, "the result")
    )


def _learn(one: Any, two: Any, lead: int, where: str) -> Axis:
    if type(one) is not type(two):
        raise NotAlikeError(f"{where} is a {type(one).__name__} or a {type(two).__name__}")
    if isinstance(one, torch.Tensor):
        axis = _grown_axis(one, two, where)
        if axis is not None:
            return Batch(axis=axis, share=Fraction(one.shape[axis], lead))
        return Scalar() if is_number(one) else Common()
    if isinstance(one, list | tuple) and len(one) != len(two):
        if len(two) != TIMES * len(one):
            raise NotAlikeError(f"{where} has {len(one)} elements or {len(two)}")
        return Listed(kind=type(one), share=Fraction(len(one), lead))
    if isinstance(one, list | tuple | dict):
        if names_of(one) != names_of(two):
            raise NotAlikeError(f"{where} has other keys")
        parts = tuple(_learn(one[name], two[name], lead, f"{where}[{name!r}]") for name in names_of(one))
        return Branch(kind=type(one), names=names_of(one), parts=parts)
    if digest(one) != digest(two):
        raise NotAlikeError(f"{where} is {one!r} or {two!r}")
    return Common()


def _grown_axis(one: torch.Tensor, two: torch.Tensor, where: str) -> int | None:
    if one.shape == two.shape:
        return None
    pairs = list(zip(one.shape, two.shape, strict=False))
    grown = [axis for axis, (small, large) in enumerate(pairs) if small != large]
    if one.ndim != two.ndim or len(grown) != 1 or two.shape[grown[0]] != TIMES * one.shape[grown[0]]:
        raise NotAlikeError(f"{where} is {tuple(one.shape)} or {tuple(two.shape)}")
    return grown[0]


def _sizes(one: Any, two: Any) -> list[int]:
    """Return the sizes of all that grew, in order; the first one counts the lanes."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        axis = _grown_axis(one, two, "a tensor")
        return [] if axis is None else [one.shape[axis]]
    if type(one) is type(two) and isinstance(one, list | tuple) and len(one) != len(two):
        return [len(one)]
    if type(one) is type(two) and isinstance(one, list | tuple | dict) and names_of(one) == names_of(two):
        return [size for name in names_of(one) for size in _sizes(one[name], two[name])]
    return []
