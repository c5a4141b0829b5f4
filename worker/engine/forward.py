"""One forward pass of the denoiser over lanes, and what comes before and after it for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from worker.engine.request import Request
from worker.models.load import LoadedModel
from worker.stages.guidance import guide


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """One row of a forward pass.

    Attributes:
        sample: the scaled latents, (1, channels, h, w) on the device.
        timestep: the UNet's.
        prompt_embeds: (1, length, width) on the device.
        timestep_cond: (1, time_cond_proj_dim) for UNets that take the guidance scale as an input, else None.
    """

    sample: torch.Tensor
    timestep: float
    prompt_embeds: torch.Tensor
    timestep_cond: torch.Tensor | None = None


def lanes_of(request: Request) -> list[Lane]:
    """Return a request's lanes for its next forward pass: `[uncond, cond]`, or `[cond]` without guidance."""
    sample = request.schedule.scale_input(request.latents, request.evaluation)
    timestep = request.schedule.timesteps[request.evaluation]
    return [
        Lane(sample=sample, timestep=timestep, prompt_embeds=embeds, timestep_cond=request.timestep_cond)
        for embeds in request.embeds
    ]


def next_latents(request: Request, noise_pred: torch.Tensor) -> torch.Tensor:
    """Apply guidance and one step of the request's noise scheduler.

    Args:
        request: positioned at the forward pass that predicted `noise_pred`; its latents stay as they are.
        noise_pred: for its lanes, (1 or 2, channels, h, w) float32.

    Returns:
        The next latents, (1, channels, h, w) float32.
    """
    if request.guided:
        uncond, cond = noise_pred.chunk(2)
        noise_pred = guide(uncond, cond, cast("float", request.parameters.guidance_scale))
    return request.schedule.step(noise_pred, request.evaluation, request.latents)


def predict_noise(model: LoadedModel, lanes: Sequence[Lane], *, width: int) -> torch.Tensor:
    """Run the UNet once over `lanes`, padded with idle lanes of zeros to `width`.

    Args:
        model: whose UNet runs.
        lanes: at least one, all of one latent shape.
        width: R, the rows of the forward pass; at least `len(lanes)`.

    Returns:
        noise_pred, (len(lanes), channels, h, w) float32: updates are float32 whatever the model's dtype.
    """
    timesteps = torch.tensor(
        [lane.timestep for lane in lanes] + [0.0] * (width - len(lanes)), dtype=torch.float32
    )
    noise_pred: torch.Tensor = model.unet(
        _stack([lane.sample for lane in lanes], width, model.dtype),
        timesteps.to(model.device),
        encoder_hidden_states=_stack([lane.prompt_embeds for lane in lanes], width, model.dtype),
        timestep_cond=_stack_optional([lane.timestep_cond for lane in lanes], width, model.dtype),
        return_dict=False,
    )[0]
    return noise_pred[: len(lanes)].float()


def _stack(rows: Sequence[torch.Tensor], width: int, dtype: torch.dtype) -> torch.Tensor:
    """Put rows of batch 1 into one tensor of batch `width`, zeros below them."""
    idle = [torch.zeros_like(rows[0])] * (width - len(rows))
    return torch.cat([*rows, *idle]).to(dtype)


def _stack_optional(
    rows: Sequence[torch.Tensor | None], width: int, dtype: torch.dtype
) -> torch.Tensor | None:
    present = [row for row in rows if row is not None]
    return _stack(present, width, dtype) if present else None
