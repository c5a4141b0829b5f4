"""From a prompt to prompt_embeds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

# transformers' CLIPTokenizer returned wrong shapes when several threads called it.
_tokenizer_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A prompt as the text encoder reads it.

    Attributes:
        input_ids: (1, model_max_length) int64 on the CPU.
        attention_mask: same shape.
        warning: a sentence when the prompt was too long, else None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    warning: str | None


def tokenise(tokenizer: Any, text: str, *, what: str = "prompt") -> Tokens:
    """Tokenise `text`, padded and truncated to the model's length exactly as diffusers does.

    Args:
        tokenizer: a `transformers.CLIPTokenizer`.
        text: the prompt.
        what: what to call it in the warning.

    Returns:
        The tokens, with a warning that names what was dropped when the text was too long.
    """
    longest = tokenizer.model_max_length
    with _tokenizer_lock:
        inputs = tokenizer(
            text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        untruncated = tokenizer(text, padding="longest", return_tensors="pt").input_ids
        warning = None
        if untruncated.shape[-1] > longest:
            dropped = tokenizer.batch_decode(untruncated[:, longest - 1 : -1])[0].strip()
            cut = untruncated.shape[-1] - longest
            warning = (
                f"The {what} is {cut} token{'s' if cut > 1 else ''} too long for the model's {longest - 2}, "
                f"and this part was dropped: {dropped!r}."
            )
    return Tokens(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, warning=warning)


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

    The cache belongs to one model in one dtype, so a text alone is its key. Only the thread that owns the
    device may call it.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, capacity: int = 256) -> None:
        """Bind the model's two text parts; `capacity` is the number of texts remembered."""
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._capacity = capacity
        self._cache: OrderedDict[str, tuple[torch.Tensor, bool]] = OrderedDict()

    def __call__(self, text: str, *, what: str = "prompt") -> tuple[torch.Tensor, str | None]:
        """Encode `text`, from the cache where possible.

        Returns:
            prompt_embeds (1, model_max_length, width), and a warning when the text was truncated.
        """
        embeds, too_long = self._cache.get(text, (None, False))
        if embeds is not None:
            self._cache.move_to_end(text)
            # The warning is worded anew: the same text may be one job's prompt and another's negative prompt.
            return embeds, tokenise(self._tokenizer, text, what=what).warning if too_long else None
        tokens = tokenise(self._tokenizer, text, what=what)
        embeds = encode(self._text_encoder, tokens)
        self._cache[text] = (embeds, tokens.warning is not None)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return embeds, tokens.warning
