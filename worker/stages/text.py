"""From a prompt to prompt_embeds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from storage.loras import LoraSet
from worker.stages.tokens import Tokens, tokenise
from worker.stages.weighting import Chunk, tokens_of, weigh

Text = str | tuple[Chunk, ...]  # a plain prompt, or the chunks of a weighted one


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


class TextStage:
    """Tokenizer and text encoder of one model, with the latest embeddings kept at hand.

    The cache belongs to one model in one dtype, so its keys are plain texts and weighted chunks, which are
    never equal, each with the LoRAs that are on. Only the thread that owns the device may call it.

    Attributes:
        loras: those that are on in the text encoder, set by whoever turns them on.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, capacity: int = 256) -> None:
        """Bind the model's two text parts; `capacity` is the number of texts and chunks remembered."""
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._capacity = capacity
        self.loras: LoraSet = ()
        self._cache: OrderedDict[tuple[LoraSet, str | Chunk], tuple[torch.Tensor, bool]] = OrderedDict()

    def __call__(self, text: Text, *, what: str = "prompt") -> tuple[torch.Tensor, str | None]:
        """Encode `text`, from the cache where possible.

        Returns:
            prompt_embeds (1, tokens, width), where tokens is model_max_length for each chunk, one for a plain
            text; and a warning when a plain text was truncated.
        """
        if not isinstance(text, str):
            return torch.cat([self._chunk(chunk) for chunk in text], dim=1), None
        embeds, too_long = self._cache.get((self.loras, text), (None, False))
        if embeds is not None:
            self._cache.move_to_end((self.loras, text))
            # The warning is worded anew: the same text may be one job's prompt and another's negative prompt.
            return embeds, tokenise(self._tokenizer, text, what=what).warning if too_long else None
        tokens = tokenise(self._tokenizer, text, what=what)
        embeds = encode(self._text_encoder, tokens)
        self._keep(text, embeds, too_long=tokens.warning is not None)
        return embeds, tokens.warning

    def _chunk(self, chunk: Chunk) -> torch.Tensor:
        embeds, _ = self._cache.get((self.loras, chunk), (None, False))
        if embeds is None:
            embeds = weigh(encode(self._text_encoder, tokens_of(self._tokenizer, chunk)), chunk)
            self._keep(chunk, embeds)
        self._cache.move_to_end((self.loras, chunk))
        return embeds

    def _keep(self, key: str | Chunk, embeds: torch.Tensor, *, too_long: bool = False) -> None:
        self._cache[self.loras, key] = (embeds, too_long)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
