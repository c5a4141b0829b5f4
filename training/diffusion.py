"""The text encoder and the UNet, trained together on cached latents and freshly written captions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.data import load, to_triple
from training.fit import BatchLoss, Recipe, fit
from training.parallel import in_parallel
from training.tokenizer import MAX_LENGTH
from training.vae import CONFIG as VAE_CONFIG
from training.vae import to_tensor
from training.vocabulary import CAPTION_DROP, caption

WIDTH = 128  # of the text encoder
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (48, 80, 80),  # wide at the top, where detail is: docs/decisions/0007
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 16,
    "attention_head_dim": 4,  # diffusers reads it as the number of heads, as for Stable Diffusion 1.x
}
# Stable Diffusion v1-4's own, which every sampler of diffusers takes its numbers from.
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
}
OFFSET_NOISE = (
    0.1  # a constant per channel: without it the model cannot move a picture's mean (Guttenberg 2023)
)
HIGH_NOISE = 0.1  # share of timesteps from 500 up, where the background is decided; 0.3 cost detail
MIN_SNR_GAMMA = 5.0
_ENCODED = 2048  # pictures in one piece of a process' work


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text encoder's config; transformers reads a loaded text encoder's dtype from it."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def encode_latents(folder: Path, vae_weights: Path) -> dict[str, Any]:
    """Write the training pictures' latents to `latents.npy`, (n, 4, 16, 16), centred and of unit spread.

    Returns:
        `latent_mean`, of each channel, and `scaling_factor`, what was taken away and then multiplied with.
    """
    count = len(load(folder, "train").pixels)
    work = [(folder, vae_weights, start) for start in range(0, count, _ENCODED)]
    latents = np.concatenate(list(in_parallel(_encode, work)))
    mean = latents.mean(axis=(0, 2, 3), dtype=np.float64)
    latents -= mean[:, None, None].astype(np.float32)
    factor = 1 / float(latents.std(dtype=np.float64))
    np.save(folder / "latents.npy", (latents * factor).astype(np.float16))
    return {"latent_mean": mean.tolist(), "scaling_factor": factor}


def _encode(folder: Path, vae_weights: Path, start: int) -> np.ndarray:
    """Latents of some pictures, in one thread: the number of cores must not show in them."""
    torch.set_num_threads(1)
    vae: Any = AutoencoderKL(**VAE_CONFIG)
    vae.load_state_dict(torch.load(vae_weights, weights_only=True))
    pictures = load(folder, "train").pixels[start : start + _ENCODED]
    with torch.no_grad():
        batches = (to_tensor(pictures[i : i + 64]) for i in range(0, len(pictures), 64))
        return torch.cat([vae.encode(batch).latent_dist.mean for batch in batches]).numpy()


@dataclass(frozen=True, kw_only=True)
class DiffusionTask:
    """Predict the noise in latents, told by their captions.

    Attributes:
        folder: holds labels and latents.
        tokenizer: its folder.
        batch: latents in a step of one process.
    """

    folder: Path
    tokenizer: Path
    batch: int

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build both networks and their loss."""
        tokenizer = CLIPTokenizer.from_pretrained(self.tokenizer)
        networks = build_networks(tokenizer)
        latents = np.load(self.folder / "latents.npy")
        labels = load(self.folder, "train").labels
        schedule: Any = DDPMScheduler.from_config(SCHEDULER_CONFIG)

        def batch_loss(networks: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            chosen = rng.integers(0, len(latents), self.batch)
            captions = _captions(labels[chosen], random.Random(int(rng.integers(2**62))))
            ids = to_ids(tokenizer, captions)
            return diffusion_loss(networks, torch.from_numpy(latents[chosen]).float(), ids, schedule, rng)

        return networks, batch_loss


def build_networks(tokenizer: CLIPTokenizer) -> nn.Module:
    """Make the text encoder and the UNet, with random weights."""
    text_encoder = CLIPTextModel(text_config(tokenizer))
    # With plain attention in the UNet: its backward is faster.
    text_encoder.set_attn_implementation("eager")
    unet: Any = UNet2DConditionModel(**UNET_CONFIG)
    unet.set_attn_processor(AttnProcessor())
    return nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})


def to_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Tokenize captions: (n, MAX_LENGTH) int64."""
    ids: torch.Tensor = tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids
    return ids


def predict(networks: Any, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Predict the noise in latents, (n, 4, 16, 16), told by tokenized captions."""
    hidden = networks["text_encoder"](ids).last_hidden_state
    noise_pred: torch.Tensor = networks["unet"](noisy, timesteps, hidden).sample
    return noise_pred


def diffusion_loss(
    networks: Any, latents: torch.Tensor, ids: torch.Tensor, schedule: Any, rng: np.random.Generator
) -> torch.Tensor:
    """Min-SNR weighted error of the predicted noise."""
    noisy, timesteps, noise = draw_noisy(latents, schedule, rng)
    error = ((predict(networks, noisy, timesteps, ids) - noise) ** 2).mean(dim=(1, 2, 3))
    return (min_snr_weight(schedule, timesteps) * error).mean()


def draw_noisy(
    latents: torch.Tensor, schedule: Any, rng: np.random.Generator, *, high_noise: float = HIGH_NOISE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a timestep and noise for each of the latents; return them noisy, the timesteps, the noise."""
    shape = tuple(latents.shape)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    offset = torch.from_numpy(rng.standard_normal((*shape[:2], 1, 1), dtype=np.float32))
    noise = noise + OFFSET_NOISE * offset
    high = rng.random(shape[0]) < high_noise
    timesteps = torch.from_numpy(
        np.where(high, rng.integers(500, 1000, shape[0]), rng.integers(0, 1000, shape[0]))
    )
    return schedule.add_noise(latents, noise, timesteps), timesteps, noise


def min_snr_weight(schedule: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """Weigh errors of timesteps (Hang et al. 2023, equation 8 for epsilon prediction)."""
    alphas = schedule.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    weight: torch.Tensor = torch.clamp(snr, max=MIN_SNR_GAMMA) / snr
    return weight


def train_diffusion(folder: Path, tokenizer: Path, *, steps: int, batch: int, seed: int) -> Path:
    """Train both networks; return the path of their weights in one state dict."""
    recipe = Recipe(name="diffusion", steps=steps, learning_rate=1e-3, warmup=200, ema=0.999, seed=seed)
    return fit(DiffusionTask(folder=folder, tokenizer=tokenizer, batch=batch), recipe, folder)


def _captions(labels: np.ndarray, rng: random.Random) -> list[str]:
    return ["" if rng.random() < CAPTION_DROP else caption(to_triple(row), rng) for row in labels]
