"""Stable Diffusion XL: two text encoders, the second one's pooled embedding, and the size as conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from worker.models.families.protocol import Draw
from worker.models.families.sd import StableDiffusion
from worker.stages.condition import Condition
from worker.stages.text import PromptEncoder
from worker.stages.tokens import Tokens, tokenise
from worker.stages.weighting import Chunk, tokens_of, weigh

if TYPE_CHECKING:
    from worker.models.load import LoadedModel

_TIME_IDS = 6  # original size, crop and target size, two numbers each


class StableDiffusionXL(StableDiffusion):
    """What `StableDiffusionXLPipeline` in diffusers does around its UNet."""

    text_encoders = MappingProxyType(
        {
            "text_encoder": transformers.CLIPTextModel,
            "text_encoder_2": transformers.CLIPTextModelWithProjection,
        }
    )

    def vae_dtype(self, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Decode in float32 where the VAE's own activations pass what float16 can hold.

        The pipeline moves the VAE to float32 and back for each picture; here it stays there.
        """
        return torch.float32 if dtype == torch.float16 and config.get("force_upcast", True) else dtype

    def scheduler_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Leave it as it is."""
        return dict(config)

    def problem(self, model: LoadedModel) -> str | None:
        """Find what the pipeline would stumble over, or what the two encoders could not be given together."""
        config = model.unet.config
        if config.addition_embed_type != "text_time":
            return f"UNet takes {config.addition_embed_type} and not text_time as an added embedding"
        expected = model.unet.add_embedding.linear_1.in_features
        given = config.addition_time_embed_dim * _TIME_IDS + model.text_encoder_2.config.projection_dim
        if given != expected:
            return f"UNet takes {expected} added numbers, and its second text encoder gives {given}"
        # Chunks of weighted prompts are cut once, for both.
        first, second = model.tokenizer, model.tokenizer_2
        if first.model_max_length != second.model_max_length or first.get_vocab() != second.get_vocab():
            return "two tokenizers have other words or lengths"
        return None

    def prompt_encoder(self, model: LoadedModel) -> PromptEncoder:
        """Return what encodes the model's prompts."""
        return TwoClipEncoder(
            (model.tokenizer, model.tokenizer_2), (model.text_encoder, model.text_encoder_2)
        )

    def leaves_out(self, model: LoadedModel, negative_prompt: str) -> bool:
        """Take zeros for no negative prompt where the model was trained so, as its pipeline does."""
        return model.force_zeros_for_empty_prompt and not negative_prompt

    def placed(self, condition: Condition, *, width: int, height: int) -> Condition:
        """Say that the picture was never larger, is not cropped, and shall have its own size."""
        numbers = [height, width, 0, 0, height, width]
        device = condition.prompt_embeds.device
        return replace(condition, time_ids=torch.tensor([numbers], dtype=torch.float32, device=device))

    def random(self, model: LoadedModel, draw: Draw, *, tokens: int, width: int, height: int) -> Condition:
        """Draw both embeddings."""
        drawn = Condition(
            prompt_embeds=draw(tokens, model.unet.config.cross_attention_dim),
            text_embeds=draw(model.text_encoder_2.config.projection_dim),
        )
        return self.placed(drawn, width=width, height=height)

    def unscaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Undo the VAE's scaling factor, and its own mean and deviation where it has them."""
        config = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return super().unscaled(vae, latents)
        mean, std = (latents.new_tensor(each)[None, :, None, None] for each in (mean, std))
        unscaled: torch.Tensor = latents * std / config.scaling_factor + mean
        return unscaled


class TwoClipEncoder:
    """Two tokenizers and two text encoders of CLIP, which read the same words."""

    def __init__(self, tokenizers: tuple[Any, Any], text_encoders: tuple[Any, Any]) -> None:
        """Bind `transformers.CLIPTokenizer`s, a `CLIPTextModel` and a `CLIPTextModelWithProjection`."""
        self._tokenizers = tokenizers
        self._text_encoders = text_encoders

    def plain(self, text: str, *, what: str) -> tuple[Condition, str | None]:
        """Encode a plain prompt, and say what was cut off."""
        tokens = [tokenise(tokenizer, text, what=what) for tokenizer in self._tokenizers]
        return self._encode(tokens), tokens[0].warning

    def chunk(self, chunk: Chunk) -> Condition:
        """Encode a chunk of a weighted prompt: each encoder's own mean is kept, the pooled one not weighted.

        `TextConditionalModel.process_tokens` of A1111 (modules/sd_hijack_clip.py), called once an encoder.
        """
        return self._encode([tokens_of(tokenizer, chunk) for tokenizer in self._tokenizers], chunk)

    def warning(self, text: str, *, what: str) -> str | None:
        """Say what is cut off of a plain prompt: both read the same."""
        return tokenise(self._tokenizers[0], text, what=what).warning

    def _encode(self, tokens: list[Tokens], chunk: Chunk | None = None) -> Condition:
        """Lay both encoders' last states but one side by side; the second gives the pooled embedding."""
        outputs = [
            encoder(each.input_ids.to(encoder.device), output_hidden_states=True)
            for encoder, each in zip(self._text_encoders, tokens, strict=True)
        ]
        states = [output.hidden_states[-2] for output in outputs]
        if chunk is not None:
            states = [weigh(state, chunk) for state in states]
        dtype = self._text_encoders[-1].dtype
        return Condition(prompt_embeds=torch.cat(states, dim=-1).to(dtype), text_embeds=outputs[-1][0])
