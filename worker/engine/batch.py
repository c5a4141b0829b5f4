"""The requests of a step side by side: one forward pass, one guidance, one update for all of them.

Request i is row i of every tensor here. Nothing loops over requests inside a step but bookkeeping in Python
numbers; the number of tensor operations does not depend on how many requests there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from worker.engine.admission import Parts
from worker.engine.forward import predict_noise
from worker.engine.request import Request
from worker.engine.shared_step import Shared, graphed_step
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel
from worker.stages.condition import Condition
from worker.stages.guidance import rescale_guided
from worker.stages.history import TERMS, History, pad

Attempt = Callable[..., Any]  # (request, what is done, function, *arguments)


class Batch:
    """The requests that share steps, until their company changes.

    Attributes:
        requests: in the order in which they take lanes.
        history: their latents and what their samplers look back at; where steps are graphed, idle rows below.
        without_table: the indices of requests whose noise scheduler has to be called.
    """

    def __init__(
        self, requests: Sequence[Request], model: LoadedModel, *, width: int, full: int = 0, parts: Parts = ()
    ) -> None:
        """Bring requests together.

        Args:
            requests: admitted, at least one, all of one group.
            model: whose UNet will run.
            width: the lanes of a forward pass; at least those of the requests, the others are idle.
            full: R, or 0 where neither shapes nor bytes are promised; see `predict_noise`.
            parts: likewise.
        """
        self.requests = list(requests)
        self._model, self._width, self._full, self._parts = model, width, full, parts
        self._graphed = isinstance(model.unet, GraphedUnet)
        tables = [request.schedule.table for request in requests]
        self.without_table = [row for row, table in enumerate(tables) if table is None]
        self._lanes = [request.lanes for request in requests]
        rescales = [
            request.parameters.options.get("guidance_rescale", 0.0) if request.lanes > 1 else 0.0
            for request in requests
        ]
        self._rescaled = any(rescales)
        shares = [(rescale, 1 - rescale) for rescale in rescales]
        self._rescales = torch.tensor(shares, device=model.device)[:, :, None, None, None]
        self.history = History.gather([request.state for request in requests])
        self._evaluations = torch.tensor([request.evaluation for request in requests], device=model.device)
        self._shared = _shared(requests, model.device)
        if self._graphed:  # as many requests and lanes every time, so that one graph does for all
            self.history = self.history.padded(width - len(requests))
            self._evaluations = pad(self._evaluations, width - len(requests))
            self._shared = self._shared.padded(width, dtype=model.dtype)

    def fits(self, requests: Sequence[Request]) -> bool:
        """Tell whether this is the batch of `requests` in their next step; intervals change lanes."""
        return self.requests == requests and self._lanes == [request.lanes for request in requests]

    def step(self, *, attempt: Attempt) -> History | None:
        """Compute the history after one more forward pass; nothing changes in a request.

        Args:
            attempt: calls a function for a request, which fails with what that raises, and returns what it
                returned, or None.

        Returns:
            None when a request failed before the forward pass: the next step goes without it.
        """
        scaled: dict[int, torch.Tensor] = {}
        for row in self.without_table:
            request = self.requests[row]
            scale = request.schedule.scale_input
            own = attempt(request, "scaling its latents", scale, request.latents, request.evaluation)
            if own is None:
                return None
            scaled[row] = own
        history, noise = self.history, self._noise()
        for row, own in scaled.items():
            history = history.with_latents(row, own)  # their input scale is 1
        if self._graphed:
            stepped = graphed_step(
                self._model, self._shared, history, self._evaluations, noise, parts=self._parts
            )
            if not self.without_table and not self._rescaled:
                return stepped.history
            noise_pred, output = stepped.noise_pred, stepped.output
        else:
            lanes = self._shared.lanes(history, self._evaluations)
            noise_pred = predict_noise(
                self._model, lanes, width=self._width, full=self._full, parts=self._parts
            )
            output = self._shared.guided(noise_pred)
        if self._rescaled:
            output = self._rescale(output, noise_pred)
        history = self._shared.after(self.history, self._evaluations, output, noise)
        for row in self.without_table:
            request = self.requests[row]
            arguments = (output[row : row + 1], request.evaluation, request.latents)
            own = attempt(request, "sampling", request.schedule.step, *arguments)
            if own is not None:
                history = history.with_latents(row, own)
        return history

    def _rescale(self, output: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Rescale whose guidance is: among R rows every time, so that sums do not depend on the company."""
        rescales = pad(self._rescales, max(self._full, len(output)) - len(self._rescales))
        idle = len(rescales) - len(output)
        cond = noise_pred[self._shared.cond]
        rescaled = rescale_guided(pad(output, idle), pad(cond, idle), rescales[:, 0], rescales[:, 1])
        return torch.where(rescales[:, 0] > 0, rescaled, pad(output, idle))[: len(output)]

    def accept(self, history: History) -> None:
        """Move on to the next evaluation of every request."""
        self.history, self._evaluations = history, self._evaluations + 1

    def _noise(self) -> torch.Tensor:
        """Return what each request draws, zeros for who draws none."""
        nothing = torch.zeros_like(self.history.latents[0])
        drawn = [
            None if request.schedule.table is None else request.schedule.noise(request.evaluation)
            for request in self.requests
        ]
        if not any(noise is not None for noise in drawn):
            return nothing
        none = nothing[:1]
        rows = torch.cat([none if noise is None else noise for noise in drawn])
        return pad(rows, len(nothing) - len(rows))


def _shared(requests: Sequence[Request], device: torch.device) -> Shared:
    """Gather what the steps of these requests look up."""
    tables = [request.schedule.table for request in requests]
    # What belongs to a request and an evaluation: (requests, evaluations, ...).
    nothing = torch.zeros((1, 2, TERMS))
    weights = [nothing if table is None else table.weights for table in tables]
    scales = [
        torch.ones(len(request.schedule)) if table is None else torch.tensor(table.input_scale)
        for request, table in zip(requests, tables, strict=True)
    ]
    timesteps = [torch.tensor(request.schedule.timesteps) for request in requests]
    lanes = [request.lanes for request in requests]
    uncond, cond, owners = (torch.tensor(own, device=device) for own in _lane_indices(lanes))
    scale = [cast("float", request.parameters.guidance_scale) for request in requests]
    # Where guidance does not run the prompt's lane is left, the last one.
    conditions = [request.conditions[-count:] for request, count in zip(requests, lanes, strict=True)]
    return Shared(
        each=torch.arange(len(requests), device=device),
        weights=_side_by_side(weights, device),
        input_scale=_side_by_side(scales, device),
        timesteps=_side_by_side(timesteps, device),
        guidance_scale=torch.tensor(scale, dtype=torch.float32, device=device)[:, None, None, None],
        uncond=uncond,
        cond=cond,
        owners=owners,
        condition=Condition.stack([each for own in conditions for each in own]),
    )


def _lane_indices(lanes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Place requests in the lanes of a forward pass: one below the other, as admission has put them in order.

    A guided request has its uncond lane first and its cond lane next; without guidance one lane is both.

    Args:
        lanes: how many each request takes, 1 or 2.

    Returns:
        The uncond lane of each request, its cond lane, and of each lane the request that it belongs to.
    """
    ends = list(itertools.accumulate(lanes))
    uncond = [end - count for end, count in zip(ends, lanes, strict=True)]
    owners = [request for request, count in enumerate(lanes) for _ in range(count)]
    return uncond, [end - 1 for end in ends], owners


def _side_by_side(tables: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack tables of different lengths, zeros below the shorter ones."""
    longest = max(len(table) for table in tables)
    return torch.stack([pad(table, longest - len(table)) for table in tables]).to(device)
