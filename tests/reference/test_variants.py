"""Other precisions and layouts of the real UNet: rounding, not other pictures."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D

from storage.models import BUILTIN_MODEL, parse_model
from tests.device import DEVICE
from worker.engine.trial import try_lanes
from worker.models.device import MIXED
from worker.models.load import LoadedModel, load_model
from worker.models.variant import Variant, run_as, variants


@pytest.fixture(scope="module")
def own() -> LoadedModel:
    """Return a model that nobody else sees: a layout is changed in place."""
    return load_model(parse_model(BUILTIN_MODEL), device=DEVICE)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="mixed precision is for CPUs")
@pytest.mark.parametrize("dtype", ["float32", MIXED])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_variant_predicts_the_same_noise(
    dtype: str, layout: str, own: LoadedModel, model: LoadedModel
) -> None:
    """Within the products' rounding; what was not converted stays what it is, and float32 goes in and out."""
    assert Variant(dtype=dtype, layout=layout) in variants(own, precisions=(MIXED,), layouts=True)
    right = try_lanes(model, 2).noise_pred
    other = "contiguous" if layout == "channels_last" else "channels_last"
    run_as(own, Variant(dtype="float32", layout=other))  # there and back
    variant = run_as(own, Variant(dtype=dtype, layout=layout))
    ours = try_lanes(variant, 2).noise_pred
    error = float((ours - right).norm() / right.norm())
    assert error < (1e-5 if dtype == "float32" else 3e-3)
    assert (error > 1e-4) == (dtype == MIXED)  # else nothing was converted
    assert variant.precision == dtype
    assert own.unet.dtype == variant.unet.dtype == variant.vae.dtype == variant.dtype == torch.float32
    weight = variant.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="mixed precision is for CPUs")
def test_mixed_precision_rounds_less_than_half_of_what_bfloat16_does(model: LoadedModel) -> None:
    """The products are in bfloat16, all of them but the first and the last convolution's, and no more is."""
    plain = replace(model, unet=copy.deepcopy(model.unet).bfloat16(), dtype=torch.bfloat16)
    mixed = run_as(model, Variant(dtype=MIXED, layout="contiguous"))
    right, *others = (try_lanes(each, 2).noise_pred for each in (model, mixed, plain))
    ours, theirs = (float((each - right).norm()) for each in others)
    assert ours < 0.55 * theirs
    products = {
        name: layer.weight.dtype
        for name, layer in mixed.unet.named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    }
    assert {name for name, dtype in products.items() if dtype == torch.float32} == {"conv_in", "conv_out"}
    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    assert {m.weight.dtype for m in mixed.unet.modules() if isinstance(m, norms)} == {torch.float32}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="mixed precision is for CPUs")
def test_blocks_hand_on_float32_in_mixed_precision(model: LoadedModel) -> None:
    """What runs through the UNet is float32 behind every block; what goes into a product is not."""
    mixed = run_as(model, Variant(dtype=MIXED, layout="contiguous"))
    handed: dict[str, set[torch.dtype]] = {}
    multiplied: set[torch.dtype] = set()

    def hand(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        handed.setdefault(name, set()).add(output.dtype)

    for module in mixed.unet.modules():
        if isinstance(
            module, ResnetBlock2D | BasicTransformerBlock | Transformer2DModel | Downsample2D | Upsample2D
        ):
            module.register_forward_hook(lambda own, _, output: hand(type(own).__name__, output))
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.weight.dtype == torch.bfloat16:
            module.register_forward_hook(lambda _, given, __: multiplied.add(given[0].dtype))
    try_lanes(mixed, 2)
    assert len(handed) == 5
    assert set().union(*handed.values()) == {torch.float32}
    assert multiplied == {torch.bfloat16}
