"""Classifier-free guidance, as StableDiffusionPipeline does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_guided(guidance_scale: float, time_cond_proj_dim: int | None) -> bool:
    """Tell whether a job runs two halves: only above 1, and not where the UNet takes the scale as an input.

    `StableDiffusionPipeline.do_classifier_free_guidance` in diffusers.
    """
    return guidance_scale > 1 and time_cond_proj_dim is None


def guide(uncond: torch.Tensor, cond: torch.Tensor, guidance_scale: torch.Tensor | float) -> torch.Tensor:
    """Combine the two predictions; equation 6 of https://arxiv.org/abs/2207.12598, in diffusers' order.

    Args:
        uncond: noise predicted for the negative (or empty) prompts, (requests, channels, h, w).
        cond: noise predicted for the prompts, same shape.
        guidance_scale: 1 gives `cond`; one number, or one a request, (requests, 1, 1, 1).

    Returns:
        The guided prediction, same shape and dtype.
    """
    return uncond + guidance_scale * (cond - uncond)


def rescale_guided(
    guided: torch.Tensor,
    cond: torch.Tensor,
    guidance_rescale: torch.Tensor | float,
    rest: torch.Tensor | float,
) -> torch.Tensor:
    """Pull the guided prediction's standard deviation towards the prompt's.

    Section 3.4 of https://arxiv.org/abs/2305.08891; `rescale_noise_cfg` in diffusers, operation by operation.
    How a request's deviation is summed up does not depend on what is in the other rows, but may on how many
    rows there are.

    Args:
        guided: (requests, channels, h, w).
        cond: noise predicted for the prompts, same shape.
        guidance_rescale: 0 leaves `guided`, 1 takes the prompt's deviation; one number, or one a request,
            (requests, 1, 1, 1).
        rest: 1 - `guidance_rescale`, likewise; rounded to float32 only here, as diffusers does.

    Returns:
        The rescaled prediction, same shape and dtype.
    """
    dims = list(range(1, cond.ndim))
    rescaled = guided * (cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return guidance_rescale * rescaled + rest * guided


def guided_evaluations(interval: Sequence[float] | None, evaluations: int) -> range:
    """Return the forward passes that are guided: from A to B of all, as diffusers' guiders count them.

    `ClassifierFreeGuidance._is_cfg_enabled` in diffusers.

    Args:
        interval: A and B, fractions; None is the whole schedule.
        evaluations: forward passes of the schedule.
    """
    first, last = interval or (0.0, 1.0)
    return range(int(first * evaluations), int(last * evaluations))


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
