"""The requests of a step side by side: one forward pass, one guidance, one update for all of them.

Request i is row i of every tensor here. Nothing loops over requests inside a step but bookkeeping in Python
numbers; the number of tensor operations does not depend on how many requests there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from worker.engine.forward import Lanes, pad, predict_noise
from worker.engine.request import Request
from worker.models.load import LoadedModel
from worker.stages.guidance import guide, rescale_guided
from worker.stages.history import TERMS, History

Attempt = Callable[..., Any]  # (request, what is done, function, *arguments)


class Batch:
    """What stays the same as long as the same requests share the steps.

    Attributes:
        requests: in the order in which they take lanes.
        history: their latents and what their samplers look back at.
        without_table: rows of the requests whose noise scheduler has to be called.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        """Bring requests together.

        Args:
            requests: admitted, at least one, all of one latent shape.
            device: of the model.
        """
        self.requests = list(requests)
        self.history = History.gather([request.place for request in requests])
        tables = [request.schedule.table for request in requests]
        self.without_table = [row for row, table in enumerate(tables) if table is None]
        # What belongs to a request and an evaluation: (requests, evaluations, ...), gathered by `_now`.
        nothing = torch.zeros((1, 2, TERMS))
        self._weights = _side_by_side([nothing if t is None else t.weights for t in tables], device)
        scales = [torch.ones(1) if t is None else torch.tensor(t.input_scale) for t in tables]
        self._scales = _side_by_side(scales, device)
        self._timesteps = _side_by_side([torch.tensor(r.schedule.timesteps) for r in requests], device)
        self._rows = torch.arange(len(requests), device=device)
        self._evaluations = torch.tensor([request.evaluation for request in requests], device=device)
        # The uncond lane comes first; a request without guidance has only one, which is both.
        self._lanes = [request.lanes for request in requests]
        firsts = [sum(self._lanes[:row]) for row in range(len(requests))]
        self._uncond = torch.tensor(firsts, device=device)
        lasts = [first + lanes - 1 for first, lanes in zip(firsts, self._lanes, strict=True)]
        self._cond = torch.tensor(lasts, device=device)
        owners = [row for row, lanes in enumerate(self._lanes) for _ in range(lanes)]
        self._owners = torch.tensor(owners, device=device)
        scale = [cast("float", request.parameters.guidance_scale) for request in requests]
        self._guidance = torch.tensor(scale, dtype=torch.float32, device=device)[:, None, None, None]
        # Where guidance does not run the prompt's lane is left, the last one.
        embeds = [r.embeds[-lanes:] for r, lanes in zip(requests, self._lanes, strict=True)]
        self._embeds = torch.cat([each for own in embeds for each in own])
        rescales = [request.parameters.options.get("guidance_rescale", 0.0) for request in requests]
        self._rescaled = [
            (row, rescale)
            for row, (rescale, lanes) in enumerate(zip(rescales, self._lanes, strict=True))
            if rescale and lanes > 1
        ]
        conds = [requests[row].timestep_cond for row in owners]
        self._cond_embeds = torch.cat([c for c in conds if c is not None]) if conds[0] is not None else None

    def fits(self, requests: Sequence[Request]) -> bool:
        """Tell whether this is the batch of `requests` in their next step; intervals change lanes."""
        return self.requests == requests and self._lanes == [request.lanes for request in requests]

    @property
    def width(self) -> int:
        """The lanes of the requests together."""
        return sum(self._lanes)

    def step(self, model: LoadedModel, *, width: int, attempt: Attempt) -> History | None:
        """Compute the history after one more forward pass; nothing changes in a request.

        Args:
            model: whose UNet runs.
            width: R, the rows of the forward pass.
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
        output = self.guided(predict_noise(model, self.lanes(scaled), width=width))
        history = self.after(output)
        for row in self.without_table:
            request = self.requests[row]
            arguments = (output[row : row + 1], request.evaluation, request.latents)
            own = attempt(request, "sampling", request.schedule.step, *arguments)
            if own is not None:
                history = history.with_latents(row, own)
        return history

    def lanes(self, scaled: Mapping[int, torch.Tensor]) -> Lanes:
        """Return the input of the next forward pass.

        Args:
            scaled: the UNet's input of every row without a table, (1, channels, h, w).
        """
        sample = self.history.latents[0] * self._now(self._scales)[:, None, None, None]
        for row, own in scaled.items():
            sample[row : row + 1] = own
        return Lanes(
            sample=sample[self._owners],
            timesteps=self._now(self._timesteps)[self._owners],
            prompt_embeds=self._embeds,
            timestep_cond=self._cond_embeds,
        )

    def guided(self, noise_pred: torch.Tensor) -> torch.Tensor:
        """Combine the lanes of each request.

        Args:
            noise_pred: (lanes, channels, h, w) float32.

        Returns:
            (requests, channels, h, w) float32; a request without guidance keeps its lane, bit for bit.
        """
        cond = noise_pred[self._cond]
        output = guide(noise_pred[self._uncond], cond, self._guidance)
        for row, rescale in self._rescaled:
            own = slice(row, row + 1)
            output[own] = rescale_guided(output[own], cond[own], rescale)
        return output

    def after(self, output: torch.Tensor) -> History:
        """Return the history after this step, for the requests with a table; nothing changes here.

        Args:
            output: (requests, channels, h, w) float32.
        """
        return self.history.after(self._now(self._weights).permute(1, 2, 0), output, self._noise(output))

    def accept(self, history: History) -> None:
        """Move on to the next evaluation of every request."""
        self.history = history
        self._evaluations = self._evaluations + 1

    def _now(self, table: torch.Tensor) -> torch.Tensor:
        """Gather what each request has for its next evaluation."""
        return table[self._rows, self._evaluations.clamp(max=table.shape[1] - 1)]

    def _noise(self, output: torch.Tensor) -> torch.Tensor:
        drawn = [
            None if request.schedule.table is None else request.schedule.noise(request.evaluation)
            for request in self.requests
        ]
        if not any(noise is not None for noise in drawn):
            return torch.zeros_like(output)
        nothing = torch.zeros_like(output[:1])
        return torch.cat([nothing if noise is None else noise for noise in drawn])


def _side_by_side(tables: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack tables of different lengths, zeros below the shorter ones."""
    longest = max(len(table) for table in tables)
    return torch.stack([pad(table, longest - len(table)) for table in tables]).to(device)
