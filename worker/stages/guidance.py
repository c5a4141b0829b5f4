"""Classifier-free guidance, as StableDiffusionPipeline does it."""

from __future__ import annotations

import torch


def is_guided(guidance_scale: float, time_cond_proj_dim: int | None) -> bool:
    """Tell whether a job runs two halves: only above 1, and not where the UNet takes the scale as an input.

    `StableDiffusionPipeline.do_classifier_free_guidance` in diffusers.
    """
    return guidance_scale > 1 and time_cond_proj_dim is None


def guide(uncond: torch.Tensor, cond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Combine the two predictions; equation 6 of https://arxiv.org/abs/2207.12598, in diffusers' order.

    Args:
        uncond: noise predicted for the negative (or empty) prompt, (1, channels, h, w).
        cond: noise predicted for the prompt, same shape.
        guidance_scale: 1 gives `cond`.

    Returns:
        The guided prediction, same shape and dtype.
    """
    return uncond + guidance_scale * (cond - uncond)


def guidance_embedding(guidance_scale: float, width: int) -> torch.Tensor:
    """Embed the scale for a UNet that takes it as an input (distilled models).

    `StableDiffusionPipeline.get_guidance_scale_embedding` in diffusers; sinusoids of 1000 (scale - 1).

    Args:
        guidance_scale: the job's.
        width: the UNet's `time_cond_proj_dim`.

    Returns:
        (1, width), float32, on the CPU.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1))
    )
    angles = torch.tensor([guidance_scale - 1.0])[:, None] * 1000.0 * frequencies[None, :]
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return torch.nn.functional.pad(embedding, (0, width % 2))
