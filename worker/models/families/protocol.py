"""What the shared loop has to be told of a family of models: all around the UNet that others do otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from worker.stages.condition import Condition
from worker.stages.text import PromptEncoder

if TYPE_CHECKING:
    from worker.models.load import LoadedModel

Draw = Callable[..., torch.Tensor]  # sizes -> (1, *sizes) of random numbers on the device


class Family(Protocol):
    """One for all models of a family; what it is asked for it takes from the model."""

    text_encoders: Mapping[str, Any]
    """Components that read prompts: the folder and transformers' class of each."""

    def vae_dtype(self, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which a VAE decodes, given its config and the one that was asked for."""
        ...

    def scheduler_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a noise scheduler's config as the pipeline leaves it that it was given to."""
        ...

    def problem(self, model: LoadedModel) -> str | None:
        """Say, as what follows "whose", why a model that was loaded cannot be rendered; None if it can."""
        ...

    def prompt_encoder(self, model: LoadedModel) -> PromptEncoder:
        """Return what encodes the model's prompts."""
        ...

    def leaves_out(self, model: LoadedModel, negative_prompt: str) -> bool:
        """Tell whether zeros stand for a job's negative prompt, and nothing is encoded."""
        ...

    def placed(self, condition: Condition, *, width: int, height: int) -> Condition:
        """Add what a lane's condition says of the picture's size, in pixels."""
        ...

    def random(self, model: LoadedModel, draw: Draw, *, tokens: int, width: int, height: int) -> Condition:
        """Make the condition of one lane of a trial, from random numbers."""
        ...

    def unscaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Bring latents, float32, to the scale of the VAE's own."""
        ...
