"""How a UNet can be run: its dtype and its memory layout, and how its forward pass is launched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from storage.errors import BadInputError
from worker.models.device import MIXED
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel
from worker.models.mixed import in_mixed_precision

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COMPILED_SHAPES = 256  # torch would run more shapes than its limit without compiling them: other bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run a UNet.

    Attributes:
        dtype: of its weights, `float32`, `float16` or `bfloat16`; `mixed_bfloat16` is the products' only.
        layout: of its convolutions' weights, `contiguous` or `channels_last`.
    """

    dtype: str
    layout: str


def variants(model: LoadedModel, *, precisions: tuple[str, ...], layouts: bool) -> list[Variant]:
    """List the ways in which a model may be run; the first is how it was loaded.

    Args:
        model: as loaded.
        precisions: what else it may compute in, from `faster_precisions`.
        layouts: whether the memory layout is free.
    """
    chosen = LAYOUTS if layouts else ("contiguous",)
    dtypes = (model.precision, *precisions)
    return [Variant(dtype=dtype, layout=layout) for dtype, layout in product(dtypes, chosen)]


def run_as(model: LoadedModel, variant: Variant) -> LoadedModel:
    """Return the model with a UNet that runs so.

    The layout is changed in place, which loses nothing and takes no second UNet's memory; in mixed precision
    the UNet is a copy. Text encoder and VAE keep their dtype: together they are a small share of the time,
    and the VAE's rounding is what is seen.

    Args:
        model: as loaded.
        variant: one of `variants`.
    """
    mixed = variant.dtype == MIXED
    unet = in_mixed_precision(model.unet) if mixed and not model.mixed else model.unet
    unet = unet.to(memory_format=LAYOUTS[variant.layout])
    return replace(model, unet=unet, mixed=mixed, layout=variant.layout)


def launched(model: LoadedModel, launch: str) -> LoadedModel:
    """Return the model with a UNet that is compiled, or captured in CUDA graphs, when it meets a new shape.

    Args:
        model: as `run_as` made it.
        launch: one of `storage.worker_options.LAUNCHES`.

    Raises:
        BadInputError: when that is not possible here; compilers fail only when the UNet first runs.
    """
    if launch == "compiled":
        unet = _compile(model.unet)
    elif launch == "cuda_graphs":
        if model.device.type != "cuda":
            raise BadInputError(f"--cuda-graphs needs an NVIDIA GPU, not the {model.device}; leave it out.")
        unet = GraphedUnet(model.unet)
    else:
        return model
    return replace(model, unet=unet, launch=launch)


def _compile(unet: Any) -> Any:
    """Compile for each shape that it meets, in the same way every time."""
    import torch._dynamo.config as dynamo  # noqa: PLC0415 - slow, and only this needs them
    import torch._inductor.config as inductor  # noqa: PLC0415 - likewise

    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = COMPILED_SHAPES
    dynamo.fail_on_recompile_limit_hit = True
    if hasattr(inductor, "deterministic"):
        inductor.deterministic = True  # else reductions are chosen by timing them: other sums in other runs
    try:
        return torch.compile(unet, dynamic=False)
    except RuntimeError as error:
        raise BadInputError(f"--compile is not possible here ({error}); leave it out.") from error


def plain_unet(unet: Any) -> Any:
    """Return the UNet itself, as it is called one forward pass at a time, of one that `launched` has made."""
    if isinstance(unet, GraphedUnet):
        return unet.plain
    return getattr(unet, "_orig_mod", unet)  # torch.compile's
