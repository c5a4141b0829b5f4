"""One forward pass of the denoiser over lanes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from worker.engine.admission import Parts
from worker.engine.lane_layers import lane_layers
from worker.models.load import LoadedModel
from worker.stages.condition import Condition
from worker.stages.history import pad


@dataclass(frozen=True, kw_only=True, slots=True)
class Lanes:
    """The lanes of a forward pass, one below the other.

    Attributes:
        sample: the scaled latents, (lanes, channels, h, w) float32 on the device.
        timesteps: the UNet's, (lanes,) float32 on the device.
        condition: what else the UNet takes, on the device.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    condition: Condition

    def __len__(self) -> int:
        """Count the lanes."""
        return len(self.timesteps)

    @classmethod
    def stack(cls, parts: Sequence[Lanes]) -> Lanes:
        """Put lanes of one group below each other; dtypes and device are theirs, the same in all."""
        return cls(
            sample=torch.cat([part.sample for part in parts]),
            timesteps=torch.cat([part.timesteps for part in parts]),
            condition=Condition.stack([part.condition for part in parts]),
        )


def predict_noise(
    model: LoadedModel, lanes: Lanes, *, width: int, full: int = 0, parts: Parts = ()
) -> torch.Tensor:
    """Run the UNet once over `lanes`, padded with idle lanes of zeros to `width`.

    Args:
        model: whose UNet runs.
        lanes: at least one, all of one latent shape and prompt length.
        width: the lanes of the forward pass, idle ones included; at least `len(lanes)`.
        full: R, which layers that see one row a lane are filled up to; 0 leaves them as they are.
        parts: layers that are called for some lanes at a time.

    Returns:
        noise_pred, (len(lanes), channels, h, w) float32: updates are float32 whatever the model's dtype.
    """
    idle = width - len(lanes)
    special = full > width or parts
    with lane_layers(model.unet, width, full=full, parts=parts) if special else nullcontext():
        noise_pred: torch.Tensor = model.unet(
            pad(lanes.sample, idle).to(model.dtype),
            pad(lanes.timesteps, idle),
            **lanes.condition.padded(idle).to(model.dtype).arguments(),
            return_dict=False,
        )[0]
    return noise_pred[: len(lanes)].float()
