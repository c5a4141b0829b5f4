"""From latents to pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def decode(vae: Any, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one picture's latents, rounding as diffusers' `VaeImageProcessor` and `numpy_to_pil` do.

    Always batch 1, so that a picture's bytes do not depend on its company.

    Args:
        vae: a `diffusers.AutoencoderKL`.
        latents: (1, channels, h, w) float32 on the VAE's device, in the scale of its own.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: when the decoder returns values that are not finite.
    """
    image = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    image = (image * 0.5 + 0.5).clamp(0, 1)
    values = image[0].permute(1, 2, 0).float().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError("the VAE returned values that are not finite")
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = (values * 255).round().astype(np.uint8)
    return pixels
