"""Other dtypes and layouts of the real UNet: rounding, not other pictures."""

from __future__ import annotations

import pytest
import torch

from storage.models import BUILTIN_MODEL, parse_model
from tests.device import DEVICE
from worker.engine.trial import try_lanes
from worker.models.load import LoadedModel, load_model
from worker.models.variant import Variant, run_as, variants


@pytest.fixture(scope="module")
def own() -> LoadedModel:
    """Return a model that nobody else sees: a layout is changed in place."""
    return load_model(parse_model(BUILTIN_MODEL), device=DEVICE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_variant_predicts_the_same_noise(
    dtype: str, layout: str, own: LoadedModel, model: LoadedModel
) -> None:
    """Within the dtype's rounding; the parts that were not converted stay what they are."""
    assert Variant(dtype=dtype, layout=layout) in variants(own, dtypes=(torch.bfloat16,), layouts=True)
    right = try_lanes(model, 2).noise_pred
    other = "contiguous" if layout == "channels_last" else "channels_last"
    run_as(own, Variant(dtype="float32", layout=other))  # there and back
    variant = run_as(own, Variant(dtype=dtype, layout=layout))
    ours = try_lanes(variant, 2).noise_pred
    error = float((ours - right).norm() / right.norm())
    assert error < (1e-5 if dtype == "float32" else 2e-2)
    assert (error > 1e-4) == (dtype == "bfloat16")  # else nothing was converted
    assert own.unet.dtype == variant.vae.dtype == variant.text_encoder.dtype == torch.float32
    assert variant.unet.dtype == variant.dtype
    weight = variant.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
