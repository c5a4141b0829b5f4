"""The requests of a step side by side: one forward pass, one guidance, one update for all of them.

Request i is row i of every tensor here. Nothing loops over requests inside a step but bookkeeping in Python
numbers; the number of tensor operations does not depend on how many requests there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from worker.engine.forward import predict_noise
from worker.engine.request import Request
from worker.engine.shared_step import GraphedStep, Shared
from worker.models.load import LoadedModel
from worker.stages.guidance import rescale_guided
from worker.stages.history import TERMS, History, pad

Attempt = Callable[..., Any]  # (request, what is done, function, *arguments)


class Batch:
    """The requests that share steps, until their company changes.

    Attributes:
        requests: in the order in which they take lanes.
        history: their latents and what their samplers look back at; below them idle rows, if it is padded.
        without_table: rows of the requests whose noise scheduler has to be called.
    """

    def __init__(
        self, requests: Sequence[Request], device: torch.device, *, lanes: int, graph: GraphedStep | None
    ) -> None:
        """Bring requests together.

        Args:
            requests: admitted, at least one, all of one latent shape.
            device: of the model.
            lanes: R: the rows of a forward pass; at least those of the requests.
            graph: runs a whole step at once, where nothing but tables is needed. It gets as many requests and
                lanes every time: R, most of them idle.
        """
        self.requests = list(requests)
        self._graph = graph
        rows = lanes if graph else len(requests)
        history = History.gather([request.place for request in requests])
        self.history = history.padded(rows - len(requests)) if graph else history
        tables = [request.schedule.table for request in requests]
        self.without_table = [row for row, table in enumerate(tables) if table is None]
        self._lanes = [request.lanes for request in requests]
        self._width = lanes
        evaluations = torch.tensor([request.evaluation for request in requests], device=device)
        self._evaluations = pad(evaluations, rows - len(requests))
        rescales = [request.parameters.options.get("guidance_rescale", 0.0) for request in requests]
        self._rescaled = [
            (row, rescale)
            for row, (rescale, lanes) in enumerate(zip(rescales, self._lanes, strict=True))
            if rescale and lanes > 1
        ]
        shared = _shared(requests, device)
        self._shared = shared.padded(requests=rows, lanes=lanes) if graph else shared

    def fits(self, requests: Sequence[Request]) -> bool:
        """Tell whether this is the batch of `requests` in their next step; intervals change lanes."""
        return self.requests == requests and self._lanes == [request.lanes for request in requests]

    def step(self, model: LoadedModel, *, attempt: Attempt) -> History | None:
        """Compute the history after one more forward pass; nothing changes in a request.

        Args:
            model: whose UNet runs.
            attempt: calls a function for a request, which fails with what that raises, and returns what it
                returned, or None.

        Returns:
            None when a request failed before the forward pass: the next step goes without it.
        """
        if self._graph and not self.without_table and not self._rescaled:
            return self._graph(self._shared, self.history, self._evaluations, self._noise())
        scaled: dict[int, torch.Tensor] = {}
        for row in self.without_table:
            request = self.requests[row]
            scale = request.schedule.scale_input
            own = attempt(request, "scaling its latents", scale, request.latents, request.evaluation)
            if own is None:
                return None
            scaled[row] = own
        lanes = self._shared.lanes(self.history, self._evaluations, scaled)
        output = self._guided(predict_noise(model, lanes, width=self._width))
        history = self._shared.after(self.history, self._evaluations, output, self._noise())
        for row in self.without_table:
            request = self.requests[row]
            arguments = (output[row : row + 1], request.evaluation, request.latents)
            own = attempt(request, "sampling", request.schedule.step, *arguments)
            if own is not None:
                history = history.with_latents(row, own)
        return history

    def accept(self, history: History) -> None:
        """Move on to the next evaluation of every request."""
        self.history = history
        self._evaluations = self._evaluations + 1

    def _guided(self, noise_pred: torch.Tensor) -> torch.Tensor:
        output = self._shared.guided(noise_pred)
        for row, rescale in self._rescaled:
            own, cond = slice(row, row + 1), self._shared.cond[row : row + 1]
            output[own] = rescale_guided(output[own], noise_pred[cond], rescale)
        return output

    def _noise(self) -> torch.Tensor:
        """Return what each request draws, zeros for who draws none."""
        nothing = torch.zeros_like(self.history.latents[0])
        drawn = [
            None if request.schedule.table is None else request.schedule.noise(request.evaluation)
            for request in self.requests
        ]
        if not any(noise is not None for noise in drawn):
            return nothing
        rows = torch.cat([nothing[:1] if noise is None else noise for noise in drawn])
        return pad(rows, len(nothing) - len(rows))


def _shared(requests: Sequence[Request], device: torch.device) -> Shared:
    """Gather what the steps of these requests look up."""
    tables = [request.schedule.table for request in requests]
    # What belongs to a request and an evaluation: (requests, evaluations, ...).
    nothing = torch.zeros((1, 2, TERMS))
    weights = [nothing if table is None else table.weights for table in tables]
    scales = [torch.ones(1) if table is None else torch.tensor(table.input_scale) for table in tables]
    timesteps = [torch.tensor(request.schedule.timesteps) for request in requests]
    # The uncond lane comes first; a request without guidance has only one, which is both.
    lanes = [request.lanes for request in requests]
    firsts = [sum(lanes[:row]) for row in range(len(requests))]
    lasts = [first + count - 1 for first, count in zip(firsts, lanes, strict=True)]
    owners = [row for row, count in enumerate(lanes) for _ in range(count)]
    scale = [cast("float", request.parameters.guidance_scale) for request in requests]
    # Where guidance does not run the prompt's lane is left, the last one.
    embeds = [request.embeds[-count:] for request, count in zip(requests, lanes, strict=True)]
    conds = [cond for row in owners if (cond := requests[row].timestep_cond) is not None]
    return Shared(
        rows=torch.arange(len(requests), device=device),
        weights=_side_by_side(weights, device),
        input_scale=_side_by_side(scales, device),
        timesteps=_side_by_side(timesteps, device),
        guidance_scale=torch.tensor(scale, dtype=torch.float32, device=device)[:, None, None, None],
        uncond=torch.tensor(firsts, device=device),
        cond=torch.tensor(lasts, device=device),
        owners=torch.tensor(owners, device=device),
        prompt_embeds=torch.cat([each for own in embeds for each in own]),
        timestep_cond=torch.cat(conds) if conds else None,
    )


def _side_by_side(tables: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack tables of different lengths, zeros below the shorter ones."""
    longest = max(len(table) for table in tables)
    return torch.stack([pad(table, longest - len(table)) for table in tables]).to(device)
