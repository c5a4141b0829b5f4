"""The shared step as a function of tensors: gather, UNet, guidance, update.

Nothing here knows a request, and nothing depends on a value: shapes are static, so that all of it can be
captured in one CUDA graph (`GraphedStep`), the gather by the step counters of the requests included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch

from worker.engine.forward import Lanes, predict_noise
from worker.models.graphed import Capture, Graphed, GraphedUnet
from worker.models.load import LoadedModel
from worker.stages.guidance import guide
from worker.stages.history import History, pad

NOTHING: Mapping[int, torch.Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What stays the same as long as the same requests share the steps.

    Attributes:
        rows: 0, 1, 2 …, (requests,) int64.
        weights: of the tables, (requests, evaluations, 2, TERMS) float32.
        input_scale: likewise, (requests, evaluations).
        timesteps: the UNet's, (requests, evaluations).
        guidance_scale: (requests, 1, 1, 1).
        uncond, cond: which lanes are a request's, (requests,) int64; one and the same without guidance.
        owners: whose each lane is, (lanes,) int64.
        prompt_embeds: (lanes, length, width).
        timestep_cond: (lanes, time_cond_proj_dim) for UNets that take the guidance scale as an input.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    input_scale: torch.Tensor
    timesteps: torch.Tensor
    guidance_scale: torch.Tensor
    uncond: torch.Tensor
    cond: torch.Tensor
    owners: torch.Tensor
    prompt_embeds: torch.Tensor
    timestep_cond: torch.Tensor | None

    def padded(self, *, requests: int, lanes: int) -> Shared:
        """Append idle requests and idle lanes, all zeros; and evaluations, to a power of 2.

        Idle lanes belong to the last request, and idle requests are led by the last lane: where there are
        idle lanes at all, both are idle, so that nothing but zeros gets into one.
        """
        more, idle = requests - len(self.rows), lanes - len(self.owners)
        evaluations = max(64, 1 << (self.timesteps.shape[1] - 1).bit_length()) - self.timesteps.shape[1]

        def table(own: torch.Tensor) -> torch.Tensor:
            return pad(pad(own.transpose(0, 1), evaluations).transpose(0, 1), more)

        def index(own: torch.Tensor, count: int, last: int) -> torch.Tensor:
            return torch.cat([own, own.new_full((count,), last)])

        return Shared(
            rows=torch.arange(requests, device=self.rows.device),
            weights=table(self.weights),
            input_scale=table(self.input_scale),
            timesteps=table(self.timesteps),
            guidance_scale=pad(self.guidance_scale, more),
            uncond=index(self.uncond, more, lanes - 1),
            cond=index(self.cond, more, lanes - 1),
            owners=index(self.owners, idle, requests - 1),
            prompt_embeds=pad(self.prompt_embeds, idle),
            timestep_cond=None if self.timestep_cond is None else pad(self.timestep_cond, idle),
        )

    def lanes(
        self, history: History, evaluations: torch.Tensor, scaled: Mapping[int, torch.Tensor] = NOTHING
    ) -> Lanes:
        """Return the input of the next forward pass.

        Args:
            history: of the requests.
            evaluations: how many forward passes each has had, (requests,) int64.
            scaled: the UNet's input of every row without a table, (1, channels, h, w).
        """
        sample = history.latents[0] * self._now(self.input_scale, evaluations)[:, None, None, None]
        for row, own in scaled.items():
            sample[row : row + 1] = own
        return Lanes(
            sample=sample[self.owners],
            timesteps=self._now(self.timesteps, evaluations)[self.owners],
            prompt_embeds=self.prompt_embeds,
            timestep_cond=self.timestep_cond,
        )

    def guided(self, noise_pred: torch.Tensor) -> torch.Tensor:
        """Combine the lanes of each request.

        Args:
            noise_pred: (lanes, channels, h, w) float32.

        Returns:
            (requests, channels, h, w) float32; a request without guidance keeps its lane, bit for bit.
        """
        return guide(noise_pred[self.uncond], noise_pred[self.cond], self.guidance_scale)

    def after(
        self, history: History, evaluations: torch.Tensor, output: torch.Tensor, noise: torch.Tensor
    ) -> History:
        """Return the history after a forward pass, by the requests' tables.

        Args:
            history: before it.
            evaluations: see `lanes`.
            output: the guided prediction, (requests, channels, h, w) float32.
            noise: what each request draws, same shape; zeros for who draws none.
        """
        return history.after(self._now(self.weights, evaluations).permute(1, 2, 0), output, noise)

    def _now(self, table: torch.Tensor, evaluations: torch.Tensor) -> torch.Tensor:
        """Gather what each request has for its next evaluation."""
        return table[self.rows, evaluations.clamp(max=table.shape[1] - 1)]


class GraphedStep:
    """All of a step in one launch, for requests that need nothing but their tables."""

    def __init__(self, model: LoadedModel, capture: Capture | None = None) -> None:
        """Capture nothing yet.

        Args:
            model: whose UNet may itself be graphed, for steps that this cannot run.
            capture: what captures; None for the UNet's own, so that all graphs share their memory.
        """
        unet = model.unet
        if isinstance(unet, GraphedUnet):
            model, capture = replace(model, unet=unet.plain), capture or unet.capture
        self._model = model
        self._graphed = Graphed(self._run, capture)

    def __call__(
        self, shared: Shared, history: History, evaluations: torch.Tensor, noise: torch.Tensor
    ) -> History:
        """Return the history after one more forward pass.

        Args:
            shared: with as many requests and lanes in every call, so that few graphs are captured.
            history: of the requests.
            evaluations: how many forward passes each has had, (requests,) int64.
            noise: what each draws, (requests, channels, h, w).
        """
        latents, hidden, output = self._graphed(
            *(getattr(shared, field.name) for field in fields(Shared)), evaluations, noise, *history.flat()
        )
        return history.moved(latents=latents, hidden=hidden, output=output, noise=noise)

    def clear(self) -> None:
        """Give the graphs' memory back."""
        self._graphed.clear()

    def _run(self, *given: Any) -> tuple[torch.Tensor, ...]:
        names = [field.name for field in fields(Shared)]
        shared = Shared(**dict(zip(names, given, strict=False)))
        evaluations, noise, *registers = given[len(names) :]
        history = History.from_flat(registers)
        lanes = shared.lanes(history, evaluations)
        output = shared.guided(predict_noise(self._model, lanes, width=len(lanes)))
        following = shared.after(history, evaluations, output, noise)
        return following.latents[0], following.hidden, output
