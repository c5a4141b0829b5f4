"""Weighted and long prompts: chunks of tokens, each with a weight, that are encoded one by one.

As A1111 does it (modules/sd_hijack_clip.py, modules/sd_emphasis.py of AUTOMATIC1111/stable-diffusion-webui).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from storage.errors import BadInputError
from storage.prompt_syntax import MAX_CHUNKS, MAX_WEIGHT, parse_weighted
from worker.stages.tokens import Tokens, tokenizer_lock

_BACKTRACK = 20 / 75  # of a chunk: A1111's "prevent prompt word wrap", 20 of CLIP's 75 tokens
_COMMA = ",</w>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What one pass of the text encoder reads between the begin and the end token.

    Attributes:
        ids: of its tokens, at most model_max_length - 2; none is the empty chunk.
        weights: of these tokens; 1 leaves a token as it is.
    """

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def split(tokenizer: Any, text: str, *, what: str = "prompt") -> tuple[Chunk, ...]:
    """Parse a weighted prompt and cut it into as many chunks as it needs; nothing is dropped.

    Args:
        tokenizer: a `transformers.CLIPTokenizer`.
        text: the prompt.
        what: what to call it in an error.

    Raises:
        BadInputError: see `parse_weighted`; or when there are more chunks than MAX_CHUNKS.
    """
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(_COMMA)
    chunks: list[Chunk] = []
    for section in parse_weighted(text, what=what):
        ids: list[int] = []
        weights: list[float] = []
        with tokenizer_lock:
            texts = [fragment.text for fragment in section]
            own = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        for each, fragment in zip(own, section, strict=True):
            ids += each
            weights += [fragment.weight] * len(each)
        chunks += [
            Chunk(ids=tuple(ids[first:end]), weights=tuple(weights[first:end]))
            for first, end in _cuts(ids, room, comma)
        ]
    if len(chunks) > 1 and not chunks[-1].ids:
        del chunks[-1]  # a BREAK at the end begins nothing
    if len(chunks) > MAX_CHUNKS:
        raise BadInputError(
            f"The {what} takes {len(chunks)} chunks of {room} tokens; shorten it to at most {MAX_CHUNKS}."
        )
    return tuple(chunks)


def level(texts: Sequence[tuple[Chunk, ...]]) -> list[tuple[Chunk, ...]]:
    """Give all of a job's prompts as many chunks as the longest has, by empty ones."""
    most = max(len(chunks) for chunks in texts)
    return [chunks + (Chunk(),) * (most - len(chunks)) for chunks in texts]


def tokens_of(tokenizer: Any, chunk: Chunk) -> Tokens:
    """Put begin and end around a chunk and pad it, as the tokenizer would."""
    ids = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
    idle = tokenizer.model_max_length - len(ids)
    return Tokens(
        input_ids=torch.tensor([ids + [tokenizer.pad_token_id] * idle]),
        attention_mask=torch.tensor([[1] * len(ids) + [0] * idle]),
        warning=None,
    )


def weigh(embeds: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Multiply each token's embedding by its weight, then bring the chunk's mean back to what it was.

    Args:
        embeds: of the chunk, (1, model_max_length, width).
        chunk: whose weights they get; begin, end and padding weigh 1.

    Returns:
        Same shape and dtype; `embeds` itself where every weight is 1.
    """
    if all(weight == 1 for weight in chunk.weights):
        return embeds
    weights = torch.ones(embeds.shape[1])
    weights[1 : 1 + len(chunk.weights)] = torch.tensor(chunk.weights)
    plain = embeds.float()
    weighted = plain * weights.to(embeds.device)[None, :, None]
    ratio = plain.mean() / weighted.mean()
    # The means of tokens have one sign in CLIP, so the weights bound the ratio. Where they cancel each other
    # it says nothing, and could blow the prompt up or turn it round.
    bounded = (ratio >= 1 / MAX_WEIGHT) & (ratio <= MAX_WEIGHT)
    return (weighted * torch.where(bounded, ratio, 1.0)).to(embeds.dtype)


def _cuts(ids: Sequence[int], room: int, comma: int) -> Iterator[tuple[int, int]]:
    """Yield where each chunk begins and ends: full, or behind a comma that is near its end."""
    first = 0
    while len(ids) - first > room:
        end = first + room
        if ids[end] != comma:
            nearest = range(end - 1, max(first, end - int(room * _BACKTRACK)) - 1, -1)
            end = next((place + 1 for place in nearest if ids[place] == comma), end)
        yield first, end
        first = end
    yield first, len(ids)
