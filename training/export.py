"""Write the trained parts as a diffusers folder: float16 safetensors, and what promptmill reads beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.art import NOTICE
from training.diffusion import SCHEDULER_CONFIG, UNET_CONFIG, text_config
from training.tokenizer import write_tokenizer
from training.vae import CONFIG as VAE_CONFIG
from training.vocabulary import caption_words

DEFAULTS: dict[str, Any] = {
    "sampler": "lms",
    "schedule": "karras",
    "guidance_scale": 5.0,
    "num_inference_steps": 30,
    "width": 64,
    "height": 64,
}
MAX_BYTES = 12_000_000  # the whole folder, card and sheets included


def export(
    folder: Path, *, vae: Path, diffusion: Path, latent_mean: list[float], scaling_factor: float
) -> None:
    """Write the model into `folder`, which `StableDiffusionPipeline.from_pretrained` then loads.

    Args:
        folder: is made if missing.
        vae: state dict of the autoencoder.
        diffusion: state dict of text encoder and UNet.
        latent_mean: of each channel; the exported autoencoder's latents are centred.
        scaling_factor: of the centred latents.
    """
    tokenizer = write_tokenizer(folder / "tokenizer", caption_words())
    networks = torch.load(diffusion, weights_only=True)
    text_encoder = CLIPTextModel(text_config(tokenizer))
    text_encoder.load_state_dict(_part(networks, "text_encoder."))
    unet: Any = UNet2DConditionModel(**UNET_CONFIG)
    unet.load_state_dict(_part(networks, "unet."))
    autoencoder: Any = AutoencoderKL(**VAE_CONFIG, scaling_factor=scaling_factor)
    autoencoder.load_state_dict(centred(torch.load(vae, weights_only=True), latent_mean))
    pipeline: Any = StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=text_encoder.half(),
        unet=unet.half(),
        vae=autoencoder.half(),
        scheduler=PNDMScheduler(steps_offset=1),  # its file is written below
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    merges = (folder / "tokenizer" / "merges.txt", folder / "tokenizer" / "vocab.json")
    kept = [path.read_bytes() for path in merges]
    pipeline.save_pretrained(folder, safe_serialization=True)
    for path, content in zip(merges, kept, strict=True):
        path.write_bytes(content)  # save_pretrained knows tokenizer.json only
    # transformers 5 loads a text encoder in the dtype that its config names, and a float16 one beside a
    # float32 UNet crashes.
    _patch(folder / "text_encoder" / "config.json", dtype="float32")
    # The keys of v1-4's own file: other classes take clip_sample from it, PNDM itself does not know it.
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": diffusers.__version__}
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler | SCHEDULER_CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "promptmill.json").write_text(
        json.dumps({"defaults": DEFAULTS}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")


def centred(vae: dict[str, torch.Tensor], latent_mean: list[float]) -> dict[str, torch.Tensor]:
    """Move the mean out of an autoencoder's latents: biases on both sides of them, and the same pictures.

    Stable Diffusion's pipelines scale latents and do not shift them, and noise that is compared with a
    mean says less about the picture. A 1x1 convolution has no padding, so nothing changes at the borders.
    """
    mean = torch.tensor(latent_mean)
    before, after = vae["quant_conv.bias"].clone(), vae["post_quant_conv.bias"].clone()
    before[: len(mean)] -= mean
    after += vae["post_quant_conv.weight"][:, :, 0, 0] @ mean
    return vae | {"quant_conv.bias": before, "post_quant_conv.bias": after}


def count_parameters(*, vae: Path, diffusion: Path) -> dict[str, int]:
    """Count the parameters of UNet, text encoder and VAE, of the state dicts that `export` takes."""
    networks = torch.load(diffusion, weights_only=True)
    parts = {
        "UNet": _part(networks, "unet."),
        "text encoder": _part(networks, "text_encoder."),
        "VAE": torch.load(vae, weights_only=True),
    }
    return {name: sum(weight.numel() for weight in part.values()) for name, part in parts.items()}


def _part(networks: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in networks.items() if name.startswith(prefix)}


def _patch(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values, indent=2) + "\n", encoding="utf-8")
