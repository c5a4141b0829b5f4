"""A UNet in mixed precision: products in bfloat16, and what they are added to in float32.

Every block of a UNet adds a little to what runs through it from the first convolution to the last. bfloat16
keeps eight bits of each such sum, and the first and last convolutions see the whole latents, so most of what
plain bfloat16 loses is lost there and not in the products, which take the time (decision 0022).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

_PRODUCTS = torch.bfloat16
_NORMS = (nn.GroupNorm, nn.LayerNorm)
_ENDS = ("conv_in", "conv_out")  # a thousandth of the products
_BEFORE_THE_END = "conv_norm_out"
# Layers that do not add to the stream but put another in its place. Everything else that a block puts out is
# added to a float32 tensor, and a sum of both dtypes is float32.
_REPLACING = {
    ResnetBlock2D: "conv_shortcut",
    Transformer2DModel: "proj_in",
    Downsample2D: "conv",
    Upsample2D: "conv",
}


def in_mixed_precision(unet: Any) -> Any:
    """Return a copy of a float32 UNet whose products are in bfloat16; it takes and returns float32.

    Args:
        unet: diffusers' `UNet2DConditionModel`, with LoRAs or without. On a CPU, whose norms take bfloat16
            beside float32 weights.
    """
    mixed = copy.deepcopy(unet)
    for name, module in mixed.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(_ENDS):
            module.to(_PRODUCTS)
            module.register_forward_pre_hook(_round_inputs)
        elif isinstance(module, _NORMS) and name != _BEFORE_THE_END:
            module.register_forward_hook(_round_output)
        for kind, replacing in _REPLACING.items():
            layer = getattr(module, replacing) if isinstance(module, kind) else None
            if layer is not None:
                layer.register_forward_hook(_widen_output)
    return mixed


def _round_inputs(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to(_PRODUCTS) if isinstance(value, torch.Tensor) else value for value in inputs)


def _round_output(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(_PRODUCTS)


def _widen_output(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()
