"""LoRAs with random weights, made by peft and saved by diffusers: nothing is downloaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

UNET = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj")


def write_lora(pipeline: Any, path: Path, *, seed: int, text: bool = True, scale: float = 0.3) -> Path:
    """Write a LoRA for a pipeline's denoiser, and with `text` for its text encoder, as trainers do.

    Args:
        pipeline: is left as it was.
        path: of the file, which ends in `.safetensors`.
        seed: of the weights.
        text: see above.
        scale: of the weights; as large as this, they show in every picture.
    """
    from peft import LoraConfig, get_peft_model_state_dict  # noqa: PLC0415 - slow

    generator = torch.Generator().manual_seed(seed)
    denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
    layers: dict[str, Any] = {f"{denoiser}_lora_layers": (getattr(pipeline, denoiser), UNET)}
    if text:
        layers["text_encoder_lora_layers"] = (pipeline.text_encoder, TEXT_ENCODER)
    found = {}
    for name, (part, targets) in layers.items():
        own = copy.deepcopy(part)
        own.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(targets)), adapter_name="made")
        weights = get_peft_model_state_dict(own, adapter_name="made")
        found[name] = {
            key: torch.randn(value.shape, generator=generator) * scale for key, value in weights.items()
        }
    pipeline.save_lora_weights(path.parent, weight_name=path.name, **found)
    return path
