"""Looks at the layers of a denoiser while it runs: does one of them treat the lanes of a call differently?

What shows places is called in parts from then on; `worker.engine.lane_parts` says why there are such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from worker.engine.admission import Parts
from worker.engine.digests import in_half_precision
from worker.engine.lane_layers import lane_layers, layers_over_lanes, over_lanes
from worker.engine.telltale import TelltaleInputs

DRAWS = 6  # of random lanes: what a place changes does not show in every number
ROUNDS = 2  # of as many draws, first for single layers, then for what they stand in
# Their kernels depend on their own sizes; what any other layer does, all of its class do.
_OWN_KERNELS = (torch.nn.Conv2d, torch.nn.Linear)
Found = TypeVar("Found")


def search_parts(
    denoiser: Any,
    lanes: int,
    *,
    run: Callable[[int], object],
    try_out: Callable[[Parts], Found | None],
    known: Parts = (),
) -> Found | None:
    """Run random lanes, and look at the layers meanwhile, until a trial with what was found succeeds.

    Args:
        denoiser: the module.
        lanes: of a forward pass.
        run: runs one with random lanes; its argument seeds them.
        try_out: tries out which layers are called in parts; returns None while places show all the same.
        known: layers that are called in parts already.

    Returns:
        What `try_out` did; None when no parts help.
    """
    search = LayerSearch(denoiser, lanes, dict(known))
    telltale = TelltaleInputs() if in_half_precision(denoiser) else nullcontext()
    for number in range(2 * ROUNDS):
        for seed in range(number * DRAWS, (number + 1) * DRAWS):
            places = 1 if seed % 2 == 0 else max(1, lanes // 2 - 1)
            inside_only = number < ROUNDS
            within = telltale if seed % DRAWS == 0 else nullcontext()
            with lane_layers(denoiser, lanes, parts=search.parts), search.on(places, inside_only), within:
                run(seed)
        found = try_out(search.parts)
        if found is not None:
            return found
    return None


class LayerSearch:
    """Looks at layers while a denoiser runs, and runs what shows places in parts from then on.

    Attributes:
        lanes: of a forward pass.
    """

    def __init__(self, denoiser: Any, lanes: int, found: dict[str, int]) -> None:
        self.lanes = lanes
        self._denoiser, self._found = denoiser, found
        self._names = {module: name for name, module in denoiser.named_modules() if name}
        self._busy = False
        self._changed = False  # in this pass
        self._places = 1

    @property
    def parts(self) -> Parts:
        """What was found."""
        return tuple(sorted(self._found.items()))

    @contextmanager
    def on(self, places: int, inside_only: bool) -> Iterator[None]:  # noqa: FBT001 - two words that say it
        """Look at the layers in this `with`: at those that have no layers inside, or at all, these first."""
        self._places, self._changed = places, False
        layers = [layer for layer in self._names if not inside_only or not any(layer.children())]
        hooks = [layer.register_forward_hook(self._look, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(
        self, layer: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Any:
        """Run a layer again with its lanes in other places; return its output once that shows no more."""
        values = (*given, *named.values())
        if self._busy or not over_lanes(output, self.lanes) or not self._takes_lanes(values):
            return None
        if self._changed and any(layer.children()):
            return None  # it has run what is inside as it was before: the next draw will tell
        self._busy = True
        try:
            return self._mended(layer, given, named, output)
        finally:
            self._busy = False

    def _mended(
        self, layer: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        moved = [self._moved(value) for value in given], {n: self._moved(v) for n, v in named.items()}
        changed = None
        while not torch.equal(layer(*moved[0], **moved[1]), self._moved(output)):
            if not self._halve(layer):
                return changed  # not even alone: it does not repeat itself
            changed = output = layer(*given, **named)
        return changed

    def _takes_lanes(self, values: tuple[Any, ...]) -> bool:
        """Tell whether what a layer is given can be divided by lanes: blocks also take tuples of tensors."""
        if any(isinstance(value, tuple | list | dict) and value for value in values):
            return False
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        return bool(tensors) and all(over_lanes(value, self.lanes) for value in tensors)

    def _moved(self, value: Any) -> Any:
        """Return a tensor with its lanes some places on, in the same memory format: kernels go by that."""
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_like(value, memory_format=torch.preserve_format).copy_(
            value.roll(self._places, dims=0)
        )

    def _halve(self, layer: torch.nn.Module) -> bool:
        """Call a layer for fewer lanes at a time; tell whether that is possible."""
        size = self._found.get(self._names[layer], self.lanes)
        if size == 1:
            return False
        own = isinstance(layer, _OWN_KERNELS)
        alike = [layer] if own else [other for other in self._names if type(other) is type(layer)]
        for other in alike:
            lanes = size // 2 if own and size % 2 == 0 else 1
            self._found[self._names[other]] = lanes
            layers_over_lanes(self._denoiser).divide(self._names[other], lanes)
        self._changed = True
        return True
