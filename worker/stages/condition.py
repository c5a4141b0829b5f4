"""What a lane tells the UNet beside its latents and its timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.stages.history import pad

Flat = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """The conditions of some lanes, a row each; what a model's UNet does not take is None.

    Attributes:
        prompt_embeds: (lanes, length, width).
        text_embeds: the pooled prompts, (lanes, width), for Stable Diffusion XL.
        time_ids: likewise; original size, crop and target size, each (h, w) in pixels, (lanes, 6) float32.
        timestep_cond: the embedded guidance scale, (lanes, time_cond_proj_dim), for UNets that take it.
    """

    prompt_embeds: torch.Tensor
    text_embeds: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    timestep_cond: torch.Tensor | None = None

    def flat(self) -> Flat:
        """Return all tensors in a fixed order."""
        return self.prompt_embeds, self.text_embeds, self.time_ids, self.timestep_cond

    @classmethod
    def from_flat(cls, tensors: Sequence[Any]) -> Condition:
        """Undo `flat`."""
        prompt_embeds, text_embeds, time_ids, timestep_cond = tensors
        return cls(
            prompt_embeds=prompt_embeds,
            text_embeds=text_embeds,
            time_ids=time_ids,
            timestep_cond=timestep_cond,
        )

    @classmethod
    def stack(cls, parts: Sequence[Condition]) -> Condition:
        """Put lanes of one model below each other."""
        columns = zip(*(part.flat() for part in parts), strict=True)
        return cls.from_flat([None if column[0] is None else torch.cat(column) for column in columns])

    @classmethod
    def chain(cls, chunks: Sequence[Condition]) -> Condition:
        """Put the chunks of one text behind each other; the first one's pooled embedding stands for all.

        So A1111 does it (`TextConditionalModel.forward`, modules/sd_hijack_clip.py).
        """
        return cls(
            prompt_embeds=torch.cat([chunk.prompt_embeds for chunk in chunks], dim=1),
            text_embeds=chunks[0].text_embeds,
        )

    def padded(self, count: int) -> Condition:
        """Append `count` idle lanes: zeros."""
        return self._each(lambda rows: pad(rows, count))

    def idle(self) -> Condition:
        """Return zeros in the same form."""
        return self._each(torch.zeros_like)

    def to(self, dtype: torch.dtype) -> Condition:
        """Bring what is embedded to the UNet's dtype; `time_ids` are numbers that it embeds itself."""
        own = self._each(lambda rows: rows.to(dtype))
        return Condition.from_flat([*own.flat()[:2], self.time_ids, own.timestep_cond])

    def arguments(self) -> dict[str, Any]:
        """Return these as `UNet2DConditionModel` takes them."""
        named: dict[str, Any] = {
            "encoder_hidden_states": self.prompt_embeds,
            "timestep_cond": self.timestep_cond,
        }
        if self.text_embeds is not None:
            named["added_cond_kwargs"] = {"text_embeds": self.text_embeds, "time_ids": self.time_ids}
        return named

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Condition:
        return Condition.from_flat([None if rows is None else change(rows) for rows in self.flat()])
