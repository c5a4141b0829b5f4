"""The autoencoder: 64x64 pictures to 4 x 16 x 16 latents and back (AutoencoderKL, f = 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from training.data import load
from training.fit import BatchLoss, Recipe, fit

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
CROP = 32  # pixels
# Up to this share of the latents' spread is added before decoding: a UNet's latents are never quite right,
# and the decoder has to draw well from those too. The latents' covariance is drawn to the identity, else two
# of the four channels carry next to nothing for the first thousand steps (docs/decisions/0008).
LATENT_NOISE = 0.25
WHITENING = 0.01


@dataclass(frozen=True, kw_only=True)
class VaeTask:
    """Reconstruct pictures, or crops: four crops cost what a picture costs and show four times as much.

    Attributes:
        folder: holds the training data.
        batch: crops in a step of one process, or four times the whole pictures.
        crops: whether to train on crops; whole pictures come last, since group norm sees the whole canvas.
        start: a state dict to go on from.
    """

    folder: Path
    batch: int
    crops: bool = True
    start: Path | None = None

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build the network and its loss."""
        vae: Any = AutoencoderKL(**CONFIG)
        if self.start:
            vae.load_state_dict(torch.load(self.start, weights_only=True))
        pictures = load(self.folder, "train")

        def batch_loss(vae: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            count = self.batch if self.crops else self.batch // 4
            chosen = pictures.pixels[np.sort(rng.integers(0, len(pictures.pixels), count))]
            return vae_loss(vae, to_tensor(_crop(chosen, rng) if self.crops else chosen), rng)

        return vae, batch_loss


def vae_loss(vae: Any, pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """L1 + 2 MSE + 0.5 gradient L1 + 1e-4 KL (per latent) + whitening; pictures in -1..1, (n, 3, h, w)."""
    posterior = vae.encode(pictures).latent_dist
    mean = posterior.mean
    noise, more = (torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)) for _ in range(2))
    share = torch.from_numpy(rng.uniform(0, LATENT_NOISE, (len(mean), 1, 1, 1)).astype(np.float32))
    flat = mean.transpose(0, 1).flatten(1)  # (4, n h w)
    covariance = torch.cov(flat, correction=0)
    # Detached, so that no gradient asks for latents whose spread is small. Larger latents would drown the
    # noise instead; whitening keeps them from that.
    spread = covariance.detach().diagonal().mean().sqrt()
    decoded = vae.decode(mean + posterior.std * noise + share * spread * more).sample
    error = decoded - pictures
    steps = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (mean**2 + posterior.var - 1 - posterior.logvar).mean()
    white = (covariance - torch.eye(len(flat))).square().mean()
    return error.abs().mean() + 2 * (error**2).mean() + 0.5 * steps + 1e-4 * kl + WHITENING * white


def train_vae(folder: Path, *, crop_steps: int, whole_steps: int, batch: int, seed: int) -> Path:
    """Train on crops, then on whole pictures; return the weights' path."""
    shared: dict[str, Any] = {"weight_decay": 0.0, "seed": seed}
    crops = fit(
        VaeTask(folder=folder, batch=batch),
        Recipe(name="vae_crops", steps=crop_steps, learning_rate=3e-3, ema=0.995, **shared),
        folder,
    )
    return fit(
        VaeTask(folder=folder, batch=batch, crops=False, start=crops),
        Recipe(name="vae", steps=whole_steps, learning_rate=1e-3, ema=0.99, warmup=20, **shared),
        folder,
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in -1..1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One crop of each picture, on the latents' grid: pixel art lives on multiples of four."""
    corners = rng.integers(0, (64 - CROP) // 4 + 1, (len(pixels), 2)) * 4
    return np.stack([p[y : y + CROP, x : x + CROP] for p, (y, x) in zip(pixels, corners, strict=True)])
