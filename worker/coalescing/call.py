"""A call of the denoiser: its arguments, the modes it was made in, and what comes of it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from storage.loras import LoraSet
from worker.coalescing.axes import Axes


@dataclass(frozen=True, kw_only=True, slots=True)
class Modes:
    """What torch keeps per thread, so that another thread has to be told.

    Attributes:
        grad: whether gradients are recorded.
        inference: whether tensors are made that never can have any.
        autocast: the dtype that operations on the device are cast to; None without.
        device_type: of the denoiser.
    """

    grad: bool
    inference: bool
    autocast: torch.dtype | None
    device_type: str

    @classmethod
    def here(cls, device_type: str) -> Modes:
        """Read this thread's."""
        cast = torch.is_autocast_enabled(device_type)
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=torch.get_autocast_dtype(device_type) if cast else None,
            device_type=device_type,
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Take them on for a `with`."""
        cast = torch.autocast(self.device_type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.grad), cast:
            yield


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """One job's call of the denoiser, waiting for its result.

    Attributes:
        owner: who made it; an object of the engine.
        inputs: the arguments by name.
        modes: the caller's.
        key: calls with an equal one can share a forward pass; set by the engine, as what follows.
        axes: what was learned of such calls; None where it runs alone.
        lanes: how many it takes.
        since: the turn in which it was first seen; set by `Turns`.
    """

    owner: Any
    inputs: dict[str, Any]
    modes: Modes
    key: Hashable = None
    axes: Axes | None = None
    lanes: int = 1
    since: int | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _outputs: Any = None
    _error: Exception | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first."""
        rank: tuple[int, int] = self.owner.rank
        return rank

    @property
    def loras(self) -> LoraSet:
        """What is turned on in the denoiser for it."""
        loras: LoraSet = self.owner.loras
        return loras

    def answer(self, outputs: Any = None, *, error: Exception | None = None) -> None:
        """Let the caller go on, with a result or an error."""
        self._outputs, self._error = outputs, error
        self._done.set()

    def wait(self) -> Any:
        """Return the result once it is there, or raise the error."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._outputs


def named_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return a call's arguments by name, so that it does not matter how they were passed.

    Where a denoiser takes any number of positional arguments, `*` holds those of the call.

    Raises:
        TypeError: when the denoiser does not take them; what it would raise itself.
    """
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return {"*": list(args), **kwargs}
    named = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


def run(denoiser: Any, inputs: dict[str, Any], modes: Modes) -> Any:
    """Run the denoiser in the given modes."""
    named = {name: value for name, value in inputs.items() if name != "*"}
    with modes.applied():
        return denoiser(*inputs.get("*", ()), **named)
