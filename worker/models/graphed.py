"""Functions of tensors that are one launch: a CUDA graph, captured once for each shape and replayed after.

A forward pass of Stable Diffusion launches about a thousand kernels, each from Python; on a fast GPU that can
take longer than they run. A graph launches all of them at once. It reads and writes fixed places in memory,
so what is new is copied in, and what comes out is copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Function = Callable[..., tuple[torch.Tensor, ...]]
# Runs a function for good, and returns what it returned and what runs it again on the same memory.
Capture = Callable[
    [Callable[[], tuple[torch.Tensor, ...]]], tuple[tuple[torch.Tensor, ...], Callable[[], object]]
]

_WARM_UPS = 3  # before a capture: cuDNN and cuBLAS choose and allocate in the first passes


class Graphed:
    """Stands in for a function of tensors; only the thread that owns the device may call it."""

    def __init__(self, function: Function, capture: Capture | None = None) -> None:
        """Capture nothing yet.

        Args:
            function: whose work depends on the shapes of its arguments, never on their values.
            capture: what captures; None for CUDA's own, with a pool of memory for all shapes.
        """
        self._function = function
        self._capture = capture or CudaCapture()
        self._captured: dict[Any, _Captured] = {}

    def __call__(self, *given: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Answer as the function does; what is returned is not written to again.

        Args:
            given: tensors, not changed in place between two calls, and None where there is none.
        """
        shape = tuple(None if each is None else (each.shape, each.dtype) for each in given)
        if shape not in self._captured:
            self._captured[shape] = _Captured(self._function, self._capture, given)
        return self._captured[shape](given)

    def clear(self) -> None:
        """Give the graphs' memory back; what is called again is captured again."""
        self._captured.clear()


class _Captured:
    """One graph: it reads from fixed places in memory, and writes to others."""

    def __init__(self, function: Function, capture: Capture, given: Sequence[torch.Tensor | None]) -> None:
        self._places = [None if each is None else each.clone() for each in given]
        self._held = list(given)
        self._outputs, self._replay = capture(lambda: function(*self._places))

    def __call__(self, given: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        for place, held, each in zip(self._places, self._held, given, strict=True):
            if place is not None and each is not None and each is not held:  # most stay what they were
                place.copy_(each)
        self._held = list(given)
        self._replay()
        return tuple(output.clone() for output in self._outputs)  # the next replay writes to the same place


class GraphedUnet:
    """Stands in for a UNet.

    Attributes:
        plain: the UNet.
        capture: what captures, for who wants to share its memory.
    """

    def __init__(self, unet: Any, capture: Capture | None = None) -> None:
        """Wrap a UNet on a CUDA device.

        Args:
            unet: a `diffusers.UNet2DConditionModel` in eval mode.
            capture: see `Graphed`.
        """
        self.plain = unet
        self.capture = capture or CudaCapture()
        self._graphed = Graphed(self._forward, self.capture)

    def __getattr__(self, name: str) -> Any:
        """Answer for the UNet: config, dtype, attention processors."""
        return getattr(self.plain, name)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Answer as UNet2DConditionModel does with return_dict=False.

        Args:
            sample: (lanes, channels, h, w).
            timestep: (lanes,).
            encoder_hidden_states: (lanes, length, width).
            timestep_cond: (lanes, time_cond_proj_dim), for UNets that take the guidance scale as an input.
            return_dict: False only.
        """
        if return_dict:
            raise ValueError("a graphed UNet returns tuples")
        return self._graphed(sample, timestep, encoder_hidden_states, timestep_cond)

    def clear(self) -> None:
        """Give the graphs' memory back."""
        self._graphed.clear()

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        output: tuple[torch.Tensor, ...] = self.plain(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            timestep_cond=timestep_cond,
            return_dict=False,
        )
        return output


class CudaCapture:
    """Captures into CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, function: Callable[[], tuple[torch.Tensor, ...]]
    ) -> tuple[tuple[torch.Tensor, ...], Callable[[], object]]:
        """Capture a function; returns what it returned, and what runs it again."""
        # As torch's documentation asks: warm up on a side stream, then capture.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads allocate meanwhile (noise goes to the device when a job joins): that is not an error.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function()
        return outputs, graph.replay
