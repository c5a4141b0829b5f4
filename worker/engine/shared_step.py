"""The shared step as a function of tensors: gather, UNet, guidance, update.

Nothing here knows a request, and nothing depends on a value: shapes are static, so that all of it can be
captured in one CUDA graph (`graphed_step`), the gather by the step counters of the requests included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from storage.parameters import MAX_STEPS
from worker.engine.admission import Parts
from worker.engine.forward import Lanes, predict_noise
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel
from worker.stages.condition import Condition
from worker.stages.guidance import guide
from worker.stages.history import TERMS, History, pad

EVALUATIONS = 2 * MAX_STEPS  # the most that a sampler takes: two a step


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What stays the same as long as the same requests share the steps.

    Attributes:
        each: 0, 1, 2 …, (requests,) int64.
        weights: of the tables, (requests, evaluations, 2, TERMS) float32.
        input_scale: likewise, (requests, evaluations) float32.
        timesteps: the UNet's, (requests, evaluations) float32.
        guidance_scale: (requests, 1, 1, 1) float32.
        uncond, cond: which lanes are a request's, (requests,) int64; one and the same without guidance.
        owners: whose each lane is, (lanes,) int64.
        condition: of the lanes.
    """

    each: torch.Tensor
    weights: torch.Tensor
    input_scale: torch.Tensor
    timesteps: torch.Tensor
    guidance_scale: torch.Tensor
    uncond: torch.Tensor
    cond: torch.Tensor
    owners: torch.Tensor
    condition: Condition

    def flat(self) -> tuple[torch.Tensor | None, ...]:
        """Return all tensors in a fixed order."""
        return *(getattr(self, name) for name in _PLAIN), *self.condition.flat()

    @classmethod
    def from_flat(cls, tensors: Sequence[Any]) -> Shared:
        """Undo `flat`."""
        plain = dict(zip(_PLAIN, tensors, strict=False))
        return cls(**plain, condition=Condition.from_flat(tensors[len(_PLAIN) :]))

    def padded(self, width: int, *, dtype: torch.dtype) -> Shared:
        """Append idle requests and lanes up to `width` of each, and evaluations up to EVALUATIONS, all zeros.

        Idle lanes belong to the last request, and idle requests are led by the last lane: where there are
        idle lanes at all, both are idle, so that nothing but zeros gets into one.

        Args:
            width: R, which is the most requests that there can be.
            dtype: of the UNet, which embeddings are brought to.
        """
        more, idle = width - len(self.each), width - len(self.owners)

        def table(own: torch.Tensor) -> torch.Tensor:
            return pad(pad(own.transpose(0, 1), EVALUATIONS - own.shape[1]).transpose(0, 1), more)

        def index(own: torch.Tensor, count: int) -> torch.Tensor:
            return torch.cat([own, own.new_full((count,), width - 1)])

        return Shared(
            each=torch.arange(width, device=self.each.device),
            weights=table(self.weights),
            input_scale=table(self.input_scale),
            timesteps=table(self.timesteps),
            guidance_scale=pad(self.guidance_scale, more),
            uncond=index(self.uncond, more),
            cond=index(self.cond, more),
            owners=index(self.owners, idle),
            condition=self.condition.padded(idle).to(dtype),
        )

    def lanes(self, history: History, evaluations: torch.Tensor) -> Lanes:
        """Return the input of the next forward pass.

        Args:
            history: of the requests.
            evaluations: how many forward passes each has had, (requests,) int64.
        """
        sample = history.latents[0] * self._now(self.input_scale, evaluations)[:, None, None, None]
        return Lanes(
            sample=sample[self.owners],
            timesteps=self._now(self.timesteps, evaluations)[self.owners],
            condition=self.condition,
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
        return table[self.each, evaluations.clamp(max=table.shape[1] - 1)]


_PLAIN = [field.name for field in fields(Shared) if field.name != "condition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What a captured step computed.

    Attributes:
        noise_pred: of every lane, (lanes, channels, h, w) float32.
        output: guided, (requests, channels, h, w) float32.
        history: after the step, for requests with a table whose guidance is not rescaled.
    """

    noise_pred: torch.Tensor
    output: torch.Tensor
    history: History


def graphed_step(
    model: LoadedModel,
    shared: Shared,
    history: History,
    evaluations: torch.Tensor,
    noise: torch.Tensor,
    *,
    parts: Parts = (),
) -> Stepped:
    """Run a whole step in one launch: gather, UNet, guidance, update.

    Args:
        model: whose UNet is a GraphedUnet.
        shared: padded, so that every call of a group and R replays the same graph.
        history: of the requests, padded.
        evaluations: how many forward passes each has had, (requests,) int64.
        noise: what each draws, (requests, channels, h, w).
        parts: see `predict_noise`.
    """
    unet: GraphedUnet = model.unet
    plain = replace(model, unet=unet.plain)
    flat = shared.flat()

    def step(*given: Any) -> tuple[torch.Tensor, ...]:
        inputs = Shared.from_flat(given[: len(flat)])
        counters, drawn, *registers = given[len(flat) :]
        before = History.from_flat(registers)
        lanes = inputs.lanes(before, counters)
        noise_pred = predict_noise(plain, lanes, width=len(lanes), parts=parts)
        output = inputs.guided(noise_pred)
        following = inputs.after(before, counters, output, drawn)
        return noise_pred, output, following.latents[0], following.hidden

    noise_pred, output, latents, hidden = unet.run(
        ("step", parts), step, *flat, evaluations, noise, *history.flat()
    )
    following = history.moved(latents=latents, hidden=hidden, output=output, noise=noise)
    return Stepped(noise_pred=noise_pred, output=output, history=following)


def predict(model: LoadedModel, lanes: Lanes, *, width: int, parts: Parts = ()) -> torch.Tensor:
    """Do what `predict_noise` does, by the very graph that steps are run with, where there are graphs."""
    if not isinstance(model.unet, GraphedUnet):
        return predict_noise(model, lanes, width=width, parts=parts)
    # Requests of one lane each, whose samples are taken as they are.
    count = len(lanes)
    each = torch.arange(count, device=lanes.sample.device)
    shared = Shared(
        each=each,
        weights=lanes.timesteps.new_zeros((count, 1, 2, TERMS)),
        input_scale=lanes.timesteps.new_ones((count, 1)),
        timesteps=lanes.timesteps[:, None],
        guidance_scale=lanes.timesteps.new_zeros((count, 1, 1, 1)),
        uncond=each,
        cond=each,
        owners=each,
        condition=lanes.condition,
    ).padded(width, dtype=model.dtype)
    history = History.start(pad(lanes.sample, width - count))
    noise = torch.zeros_like(history.hidden)
    counters = pad(each * 0, width - count)
    return graphed_step(model, shared, history, counters, noise, parts=parts).noise_pred[:count]
