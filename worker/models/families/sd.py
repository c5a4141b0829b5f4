"""Stable Diffusion 1.x and 2.x: one text encoder, whose last state is the condition."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from worker.models.families.protocol import Draw, Family
from worker.stages.condition import Condition
from worker.stages.text import PromptEncoder
from worker.stages.tokens import Tokens, tokenise
from worker.stages.weighting import Chunk, tokens_of, weigh

if TYPE_CHECKING:
    from worker.models.load import LoadedModel


class StableDiffusion(Family):
    """What `StableDiffusionPipeline` in diffusers does around its UNet."""

    text_encoders = MappingProxyType({"text_encoder": transformers.CLIPTextModel})

    def vae_dtype(self, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Decode in the dtype that was asked for: that pipeline ignores `force_upcast`."""
        return dtype

    def scheduler_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Mend old ones: the pipeline's `__init__` sets `steps_offset` to 1 and `clip_sample` to False."""
        mended = dict(config)
        if config.get("steps_offset", 1) != 1:
            mended["steps_offset"] = 1
        if config.get("clip_sample", False) is True:
            mended["clip_sample"] = False
        return mended

    def problem(self, model: LoadedModel) -> str | None:
        """Find nothing: what is looked at before a model is loaded is all."""
        return None

    def prompt_encoder(self, model: LoadedModel) -> PromptEncoder:
        """Return what encodes the model's prompts."""
        return ClipEncoder(model.tokenizer, model.text_encoder)

    def leaves_out(self, model: LoadedModel, negative_prompt: str) -> bool:
        """Encode an empty negative prompt like any other."""
        return False

    def placed(self, condition: Condition, *, width: int, height: int) -> Condition:
        """Return the condition itself: the UNet hears nothing of the size."""
        return condition

    def random(self, model: LoadedModel, draw: Draw, *, tokens: int, width: int, height: int) -> Condition:
        """Draw prompt_embeds."""
        return Condition(prompt_embeds=draw(tokens, model.unet.config.cross_attention_dim))

    def unscaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Divide by the VAE's scaling factor."""
        unscaled: torch.Tensor = latents / vae.config.scaling_factor
        return unscaled


class ClipEncoder:
    """A tokenizer and a text encoder of CLIP."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        """Bind a `transformers.CLIPTokenizer` and a `transformers.CLIPTextModel`."""
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder

    def plain(self, text: str, *, what: str) -> tuple[Condition, str | None]:
        """Encode a plain prompt, and say what was cut off."""
        tokens = tokenise(self._tokenizer, text, what=what)
        return Condition(prompt_embeds=encode(self._text_encoder, tokens)), tokens.warning

    def chunk(self, chunk: Chunk) -> Condition:
        """Encode a chunk of a weighted prompt."""
        embeds = encode(self._text_encoder, tokens_of(self._tokenizer, chunk))
        return Condition(prompt_embeds=weigh(embeds, chunk))

    def warning(self, text: str, *, what: str) -> str | None:
        """Say what is cut off of a plain prompt."""
        return tokenise(self._tokenizer, text, what=what).warning


def encode(text_encoder: Any, tokens: Tokens) -> torch.Tensor:
    """Run the text encoder on one prompt; batch 1, so that the result does not depend on company.

    Returns:
        prompt_embeds, (1, model_max_length, width), in the encoder's dtype and on its device.
    """
    device = text_encoder.device
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if masked else None
    embeds: torch.Tensor = text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
    return embeds.to(dtype=text_encoder.dtype)
