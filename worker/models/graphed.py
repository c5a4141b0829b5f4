"""Work of a UNet that is one launch: CUDA graphs, each captured once for its shapes and replayed after.

A forward pass of Stable Diffusion launches about a thousand kernels, each from Python; on a fast GPU that can
take longer than they run. A graph launches all of them at once. It reads and writes fixed places in memory,
so what is new is copied in, and what comes out is copied out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

Outputs = tuple[torch.Tensor, ...]
Given = Sequence[torch.Tensor | None]

_MOST = 8  # graphs that are kept, the last used ones: each holds a shape's inputs and outputs
_WARM_UPS = 3  # before a capture: cuDNN and cuBLAS choose and allocate in the first passes


class Capture(Protocol):
    """What captures a function's work."""

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Run a function for good; return its outputs, and what runs it again on the same memory."""
        ...

    def reset(self) -> None:
        """Forget the memory of what was captured: all of it is let go."""
        ...


class GraphedUnet:
    """Stands in for a UNet, and for functions around it; only the thread that owns the device may call it.

    Attributes:
        plain: the UNet.
    """

    def __init__(self, unet: Any, capture: Capture | None = None) -> None:
        """Wrap a UNet; nothing is captured yet.

        Args:
            unet: a `diffusers.UNet2DConditionModel` in eval mode, on a CUDA device.
            capture: what captures; None for CUDA's own.
        """
        self.plain = unet
        self._capture = capture or CudaCapture()
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        """Answer for the UNet: config, dtype, attention processors."""
        return getattr(self.plain, name)

    @property
    def captured(self) -> int:
        """How many graphs are kept."""
        return len(self._captured)

    def run(self, name: Hashable, function: Callable[..., Outputs], *given: torch.Tensor | None) -> Outputs:
        """Return what a function of tensors returns, by a graph of its work.

        Args:
            name: of the function: the first of this name and these shapes is the one that is captured.
            function: whose work depends on the shapes of its arguments, never on their values.
            given: not changed in place between two calls; None where there is none.
        """
        key = (name, *(None if each is None else (each.shape, each.dtype) for each in given))
        if key not in self._captured:
            while len(self._captured) >= _MOST:
                self._captured.popitem(last=False)
            self._captured[key] = _Captured(function, self._capture, given)
        self._captured.move_to_end(key)
        return self._captured[key](given)

    def clear(self) -> None:
        """Give the graphs' memory back; what is called again is captured again."""
        self._captured.clear()
        self._capture.reset()


class _Captured:
    """One graph: it reads from fixed places in memory, and writes to others."""

    def __init__(self, function: Callable[..., Outputs], capture: Capture, given: Given) -> None:
        self._places = [None if each is None else each.clone() for each in given]
        self._held = list(given)
        self._outputs, self._replay = capture(lambda: function(*self._places))

    def __call__(self, given: Given) -> Outputs:
        for place, held, each in zip(self._places, self._held, given, strict=True):
            if place is not None and each is not None and each is not held:  # most stay what they were
                place.copy_(each)
        self._held = list(given)
        self._replay()
        return tuple(output.clone() for output in self._outputs)  # the next replay writes to the same place


class CudaCapture:
    """Captures into CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._side: Any = None

    def reset(self) -> None:
        """Forget the pool: a handle whose graphs are all gone must not be used again."""
        self._pool = None

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Capture a function's work, on the current device."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace for every stream that it has seen.
        self._side = self._side or torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        # As torch's documentation asks: warm up on a side stream, then capture.
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        # Other threads allocate meanwhile (noise goes to the device when a job joins): that is not an error.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            outputs = function()
        return outputs, graph.replay
