"""Layers that see one row a lane, run with R rows whatever the width of a forward pass.

A matrix product of two rows adds up in another order than one of many, on most CPUs. In a UNet only the
layers behind the timestep (and Stable Diffusion XL's time ids) have as few rows as there are lanes; all
others have many rows a lane. Filled up to R rows, which costs next to nothing, they give a lane the same bits
in a narrow pass, and all that follows usually does too (`worker.engine.agreement` tries it out).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from worker.stages.history import pad

_ATTRIBUTE = "_promptmill_lane_rows"


class LaneRows:
    """Stands before the linear layers of a UNet; one for each UNet.

    Attributes:
        rows: how many rows a layer over lanes runs with at least; 0 leaves everything as it is.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self.rows = 0
        for module in unet.modules():
            if type(module) is torch.nn.Linear:  # what wraps one has it inside
                module.forward = partial(self._run, module)  # type: ignore[method-assign]

    def _run(self, layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does.

        Args:
            layer: see above.
            inputs: (lanes, features) for a layer over lanes, (lanes, tokens, features) for any other.
        """
        more = self.rows - len(inputs)
        if more > 0 and inputs.dim() == 2:  # noqa: PLR2004  (lanes, features)
            return functional.linear(pad(inputs, more), layer.weight, layer.bias)[: len(inputs)]
        return functional.linear(inputs, layer.weight, layer.bias)


@contextmanager
def lane_rows(unet: Any, rows: int) -> Iterator[None]:
    """Run a UNet's layers over lanes with so many rows in this `with`."""
    own = getattr(unet, _ATTRIBUTE, None)
    if own is None:
        own = LaneRows(unet)
        setattr(unet, _ATTRIBUTE, own)
    own.rows = rows
    try:
        yield
    finally:
        own.rows = 0
