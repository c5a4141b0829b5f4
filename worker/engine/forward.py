"""One forward pass of the denoiser over lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.models.load import LoadedModel
from worker.stages.history import pad


@dataclass(frozen=True, kw_only=True, slots=True)
class Lanes:
    """The rows of a forward pass.

    Attributes:
        sample: the scaled latents, (lanes, channels, h, w) on the device.
        timesteps: the UNet's, (lanes,) float32 on the device.
        prompt_embeds: (lanes, length, width) on the device.
        timestep_cond: (lanes, time_cond_proj_dim) for UNets that take the guidance scale as an input.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    prompt_embeds: torch.Tensor
    timestep_cond: torch.Tensor | None = None

    def __len__(self) -> int:
        """Count the lanes."""
        return len(self.timesteps)

    @classmethod
    def stack(cls, parts: Sequence[Lanes]) -> Lanes:
        """Put lanes below each other."""
        conds = [part.timestep_cond for part in parts if part.timestep_cond is not None]
        return cls(
            sample=torch.cat([part.sample for part in parts]),
            timesteps=torch.cat([part.timesteps for part in parts]),
            prompt_embeds=torch.cat([part.prompt_embeds for part in parts]),
            timestep_cond=torch.cat(conds) if conds else None,
        )


def predict_noise(model: LoadedModel, lanes: Lanes, *, width: int) -> torch.Tensor:
    """Run the UNet once over `lanes`, padded with idle lanes of zeros to `width`.

    Args:
        model: whose UNet runs.
        lanes: at least one, all of one latent shape and prompt length.
        width: R, the rows of the forward pass; at least `len(lanes)`.

    Returns:
        noise_pred, (len(lanes), channels, h, w) float32: updates are float32 whatever the model's dtype.
    """
    idle = width - len(lanes)
    cond = lanes.timestep_cond
    noise_pred: torch.Tensor = model.unet(
        pad(lanes.sample, idle).to(model.dtype),
        pad(lanes.timesteps, idle),
        encoder_hidden_states=pad(lanes.prompt_embeds, idle).to(model.dtype),
        timestep_cond=None if cond is None else pad(cond, idle).to(model.dtype),
        return_dict=False,
    )[0]
    return noise_pred[: len(lanes)].float()
