"""From a plain prompt to tokens, as diffusers does it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

# transformers' CLIPTokenizer returned wrong shapes when several threads called it.
tokenizer_lock = threading.Lock()


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
    with tokenizer_lock:
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
