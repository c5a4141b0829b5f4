"""What the export does to the trained weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL

from training.export import centred
from training.vae import CONFIG


def test_centring_moves_the_latents_and_no_picture() -> None:
    """Latents lose their mean, and what is decoded from them stays."""
    torch.manual_seed(3)
    vae: Any = AutoencoderKL(**CONFIG)
    moved: Any = AutoencoderKL(**CONFIG)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist
        mean = latents.mean.mean(dim=(0, 2, 3))
        moved.load_state_dict(centred(vae.state_dict(), mean.tolist()))
        centred_latents = moved.encode(pictures).latent_dist
        assert mean.abs().min() > 1e-3  # else it would show nothing
        torch.testing.assert_close(
            centred_latents.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(centred_latents.std, latents.std)
        torch.testing.assert_close(
            moved.decode(centred_latents.mean).sample, vae.decode(latents.mean).sample, atol=1e-4, rtol=1e-4
        )
