"""How a UNet can be run: its dtype and its memory layout, and compiled or not."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import product

import torch

from storage.errors import BadInputError
from worker.models.load import LoadedModel

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run a UNet.

    Attributes:
        dtype: of its weights, `float32`, `float16` or `bfloat16`.
        layout: of its convolutions' weights, `contiguous` or `channels_last`.
    """

    dtype: str
    layout: str


def variants(model: LoadedModel, *, dtypes: tuple[torch.dtype, ...], layouts: bool) -> list[Variant]:
    """List the ways in which a model may be run; the first is how it was loaded.

    Args:
        model: as loaded.
        dtypes: others that it may be converted to, from `faster_dtypes`.
        layouts: whether the memory layout is free.
    """
    names = [_name(dtype) for dtype in (model.dtype, *dtypes)]
    chosen = LAYOUTS if layouts else ("contiguous",)
    return [Variant(dtype=dtype, layout=layout) for dtype, layout in product(names, chosen)]


def run_as(model: LoadedModel, variant: Variant) -> LoadedModel:
    """Return the model with a UNet that runs so; `model` itself stays what it is.

    Text encoder and VAE keep their dtype: together they are a small share of the time, and the VAE's rounding
    is what is seen.
    """
    if variant == Variant(dtype=_name(model.dtype), layout=model.layout):
        return model
    dtype: torch.dtype = getattr(torch, variant.dtype)
    unet = copy.deepcopy(model.unet).to(dtype).to(memory_format=LAYOUTS[variant.layout])
    return replace(model, unet=unet, dtype=dtype, layout=variant.layout)


def compiled(model: LoadedModel) -> LoadedModel:
    """Return the model with a UNet that torch compiles when it first runs on a shape.

    Raises:
        BadInputError: when torch cannot compile here.
    """
    try:
        unet = torch.compile(model.unet, dynamic=False)
    except RuntimeError as error:
        raise BadInputError(f"--compile is not possible here ({error}); leave it out.") from error
    return replace(model, unet=unet, compiled=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
