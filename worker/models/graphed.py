"""A UNet whose forward pass is one launch: a CUDA graph, captured once for each shape and replayed after.

A forward pass of Stable Diffusion launches about a thousand kernels, each from Python; on a fast GPU that can
take longer than they run. A graph launches all of them at once. It reads and writes fixed places in memory,
so inputs are copied in and the output is copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Inputs = Mapping[str, torch.Tensor | None]
Captured = tuple[Inputs, torch.Tensor, Callable[[], object]]  # where it reads, where it writes, run again
# Runs `forward` once for good, and returns what it returned and what runs it again on the same memory.
Capture = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Callable[[], object]]]

_WARM_UPS = 3  # before a capture: cuDNN and cuBLAS choose and allocate in the first passes


class GraphedUnet:
    """Stands in for a UNet; only the thread that owns the device may call it."""

    def __init__(self, unet: Any, capture: Capture | None = None) -> None:
        """Wrap a UNet on a CUDA device.

        Args:
            unet: a `diffusers.UNet2DConditionModel` in eval mode.
            capture: what captures; None for CUDA's own, with one memory pool for all shapes.
        """
        self._unet = unet
        self._capture = capture or _CudaCapture()
        self._captured: dict[Any, Captured] = {}

    def __getattr__(self, name: str) -> Any:
        """Answer for the UNet: config, dtype, attention processors."""
        return getattr(self._unet, name)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
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
        given: Inputs = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "timestep_cond": timestep_cond,
        }
        shape = tuple(
            (tensor.shape, tensor.dtype) if tensor is not None else None for tensor in given.values()
        )
        if shape not in self._captured:
            self._captured[shape] = self._record(given)
        places, output, replay = self._captured[shape]
        for name, tensor in given.items():
            place = places[name]
            if place is not None and tensor is not None:
                place.copy_(tensor)
        replay()
        return (output.clone(),)  # the next replay writes to the same place

    def _record(self, given: Inputs) -> Captured:
        places: Inputs = {name: None if each is None else each.clone() for name, each in given.items()}

        def forward() -> torch.Tensor:
            output: torch.Tensor = self._unet(**places, return_dict=False)[0]
            return output

        return (places, *self._capture(forward))


class _CudaCapture:
    """Captures into CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], object]]:
        # As torch's documentation asks: warm up on a side stream, then capture.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads allocate meanwhile (noise goes to the device when a job joins): that is not an error.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = forward()
        return output, graph.replay
