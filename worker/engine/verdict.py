"""Whether latents are finite: asked on the device after each step, read a step late; nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worker.engine.request import Request


class Verdict:
    """The answer about one step's latents, on its way from the device.

    Attributes:
        requests: about which was asked.
    """

    def __init__(self, requests: Sequence[Request], latents: torch.Tensor) -> None:
        """Ask.

        Args:
            requests: which are about to move on.
            latents: (requests, channels, h, w) float32, theirs after the step.
        """
        self.requests = list(requests)
        self._steps = [request.evaluation + 1 for request in requests]
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        self._arrived: torch.cuda.Event | None = None
        if finite.is_cuda:
            # Plain `tolist` would wait for all that was launched since, the next forward pass included.
            pinned = torch.empty(finite.shape, dtype=finite.dtype, pin_memory=True)
            self._finite = pinned.copy_(finite, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
            self._arrived.record(torch.cuda.current_stream(latents.device))
        else:
            self._finite = finite

    def broken(self) -> list[tuple[Request, int]]:
        """Return the requests whose latents are infinite or not a number, each with the step that did it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        finite = self._finite.tolist()
        asked = zip(self.requests, self._steps, finite, strict=True)
        return [(request, step) for request, step, is_finite in asked if not is_finite]
