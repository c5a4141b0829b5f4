"""From a text to what the UNet hears of it, with the latest ones kept at hand."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from storage.loras import LoraSet
from worker.metrics import EMBEDDINGS
from worker.stages.condition import Condition
from worker.stages.weighting import Chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class Nothing:
    """The negative prompt of a job that has none, for models that take zeros then.

    Attributes:
        chunks: its length, as that of a weighted prompt.
    """

    chunks: int


HIT, MISS = EMBEDDINGS.labels("hit"), EMBEDDINGS.labels("miss")
Text = str | tuple[Chunk, ...] | Nothing  # a plain prompt, the chunks of a weighted one, or none


class PromptEncoder(Protocol):
    """Tokenizers and text encoders of one model; batch 1, so that no result depends on company."""

    def plain(self, text: str, *, what: str) -> tuple[Condition, str | None]:
        """Encode a plain prompt, cut to the model's length; the second is what `warning` says."""
        ...

    def chunk(self, chunk: Chunk) -> Condition:
        """Encode a chunk of a weighted prompt, by its weights."""
        ...

    def warning(self, text: str, *, what: str) -> str | None:
        """Say what is cut off of a plain prompt; None where all of it fits."""
        ...


class TextStage:
    """The prompt encoder of one model, with the latest conditions kept at hand.

    The cache belongs to one model in one dtype, so its keys are plain texts and weighted chunks, which are
    never equal, each with the LoRAs that are on. Only the thread that owns the device may call it.

    Attributes:
        loras: those that are on in the text encoder, set by whoever turns them on.
    """

    def __init__(self, encoder: PromptEncoder, *, capacity: int = 256) -> None:
        """Bind the model's encoder; `capacity` is the number of texts and chunks remembered."""
        self._encoder = encoder
        self._capacity = capacity
        self.loras: LoraSet = ()
        self._cache: OrderedDict[tuple[LoraSet, str | Chunk], tuple[Condition, bool]] = OrderedDict()

    def __call__(self, text: Text, *, what: str = "prompt") -> tuple[Condition, str | None]:
        """Encode `text`, from the cache where possible.

        Returns:
            The condition of one lane, whose prompt_embeds have model_max_length tokens for each chunk, one
            for a plain text; and a warning when a plain text was truncated.
        """
        if isinstance(text, Nothing):
            empty, _ = self("")
            return Condition.chain([empty] * text.chunks).idle(), None
        if not isinstance(text, str):
            return Condition.chain([self._chunk(chunk) for chunk in text]), None
        condition, too_long = self._cache.get((self.loras, text), (None, False))
        (MISS if condition is None else HIT).inc()
        if condition is not None:
            self._cache.move_to_end((self.loras, text))
            # The warning is worded anew: the same text may be one job's prompt and another's negative prompt.
            return condition, self._encoder.warning(text, what=what) if too_long else None
        condition, warning = self._encoder.plain(text, what=what)
        self._keep(text, condition, too_long=warning is not None)
        return condition, warning

    def _chunk(self, chunk: Chunk) -> Condition:
        condition, _ = self._cache.get((self.loras, chunk), (None, False))
        (MISS if condition is None else HIT).inc()
        if condition is None:
            condition = self._encoder.chunk(chunk)
            self._keep(chunk, condition)
        self._cache.move_to_end((self.loras, chunk))
        return condition

    def _keep(self, key: str | Chunk, condition: Condition, *, too_long: bool = False) -> None:
        self._cache[self.loras, key] = (condition, too_long)
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
