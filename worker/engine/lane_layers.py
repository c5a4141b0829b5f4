"""How single layers of a UNet see the lanes of a forward pass: filled up to R rows, or in parts.

Rows: a matrix product of two rows adds up in another order than one of many, on most CPUs. In a UNet only the
layers behind the timestep (and Stable Diffusion XL's time ids) have as few rows as there are lanes; all
others have many rows a lane. Filled up to R rows, which costs next to nothing, they give a lane the same bits
in a narrow pass, and all that follows usually does too (`worker.engine.agreement` tries it out).

Parts: some kernels treat the lanes of one call differently (`worker.engine.lane_parts` finds out which). Such
a layer is called for a few lanes at a time, always equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from worker.engine.admission import Parts
from worker.stages.history import pad

_ATTRIBUTE = "_promptmill_lane_layers"
_ALIGNED = 64  # bytes


class LaneLayers:
    """Stands before layers of a UNet; one for each UNet.

    Attributes:
        width: the lanes of the forward pass that runs; inside of a part, the part's.
        full: how many rows a layer over lanes runs with at least, R; 0 leaves everything as it is.
        divided: which layers are called in parts, each for so many lanes.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self.width = self.full = 0
        self.divided: dict[torch.nn.Module, int] = {}
        self._named = dict(unet.named_modules())
        self._stood_before: set[torch.nn.Module] = set()
        for module in self._named.values():
            if type(module) is torch.nn.Linear:  # what wraps one has it inside
                self._stand_before(module)

    def divide(self, name: str, lanes: int) -> None:
        """Call a layer for so many lanes at a time from now on."""
        layer = self._named[name]
        self._stand_before(layer)
        self.divided[layer] = lanes

    def _stand_before(self, layer: torch.nn.Module) -> None:
        if layer not in self._stood_before:
            self._stood_before.add(layer)
            layer.forward = partial(self._run, layer, layer.forward)

    def _run(self, layer: torch.nn.Module, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Do what the layer does.

        Args:
            layer: see above.
            forward: its own.
            given: of a linear layer (lanes, features) if it is over lanes, (lanes, tokens, features) if not.
            named: what else it takes.
        """
        size = self.divided.get(layer, 0)
        values = (*given, *named.values())
        if size and self.width != size and any(over_lanes(value, self.width) for value in values):
            return self._in_parts(size, forward, given, named)
        if self.full and given and type(layer) is torch.nn.Linear:
            (inputs,) = given
            more = self.full - len(inputs)
            if more > 0 and inputs.dim() == 2:  # noqa: PLR2004  (lanes, features)
                return functional.linear(pad(inputs, more), layer.weight, layer.bias)[: len(inputs)]
        return forward(*given, **named)

    def _in_parts(
        self, size: int, forward: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]
    ) -> torch.Tensor:
        """Call a layer for `size` lanes at a time; the last ones are joined by idle lanes."""
        width = self.width
        self.width = size  # of what is inside, which may be in parts as well
        try:
            outputs = [
                forward(
                    *(_part(value, width, start, size) for value in given),
                    **{name: _part(value, width, start, size) for name, value in named.items()},
                )
                for start in range(0, width, size)
            ]
        finally:
            self.width = width
        return torch.cat(outputs)[:width]


def _part(value: Any, width: int, start: int, size: int) -> Any:
    """Return so many lanes of a tensor over lanes, and of anything else all."""
    if not over_lanes(value, width):
        return value
    own = value[start : start + size]
    if own.data_ptr() % _ALIGNED:  # kernels go by that, too
        own = own.clone(memory_format=torch.preserve_format)
    return pad(own, size - len(own))


def over_lanes(value: Any, lanes: int) -> bool:
    """Tell whether a value is a tensor with a row, or more dimensions, for each lane."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == lanes


def layers_over_lanes(unet: Any) -> LaneLayers:
    """Return what stands before the layers of a UNet."""
    own: LaneLayers | None = getattr(unet, _ATTRIBUTE, None)
    if own is None:
        own = LaneLayers(unet)
        setattr(unet, _ATTRIBUTE, own)
    return own


@contextmanager
def lane_layers(unet: Any, width: int, *, full: int = 0, parts: Parts = ()) -> Iterator[None]:
    """Run a UNet's layers in this `with` as its lanes ask for.

    Args:
        unet: see above.
        width: lanes of the forward pass.
        full: R, the rows that layers over lanes run with at least.
        parts: which layers are called in parts.
    """
    own = layers_over_lanes(unet)
    try:
        own.width, own.full = width, full
        for name, lanes in parts:
            own.divide(name, lanes)
        yield
    finally:
        own.width = own.full = 0
        own.divided.clear()
