"""Which layers treat the lanes of a call differently, and how few lanes at a time make them treat all alike.

A lane's result has to be the same at every place, or exact mode cannot run R lanes. Some kernels break that:
those of some convolutions on GPUs in half precision divide the work at places that have nothing to do with
lanes, and element-wise ones on CPUs treat the last few numbers of each thread by other instructions. (Seen:
21 of 98 convolutions of an SD 1.x-sized UNet at 8 lanes in bfloat16 on an H100; SiLU and GELU with 3 or 6
threads.) Such a layer is called for half of the lanes at a time, a quarter, and so on: one lane at a time
there are no places to tell apart. All other layers go on sharing one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog
import torch

from worker.engine.admission import Group
from worker.engine.agreement import holds
from worker.engine.forward import Lanes, predict_noise
from worker.engine.lane_layers import LaneLayers, Parts, lane_layers, layers_of, over_lanes
from worker.engine.trial import Beat, Trial, native_group, nothing, random_lanes, try_lanes
from worker.models.load import LoadedModel
from worker.models.variant import plain_unet

log = structlog.get_logger()

DRAWS = 6  # of random lanes: what a place changes does not show in every number
ROUNDS = 3  # of as many draws
# Their kernels depend on their own sizes; what any other layer does, all of its class do.
_OWN_KERNELS = (torch.nn.Conv2d, torch.nn.Linear)


def exact_trial(model: LoadedModel, lanes: int, *, group: Group | None = None, beat: Beat = nothing) -> Trial:
    """Try out R lanes; where places show, find the layers to be called in parts, and try again with these.

    Args:
        model: on its device.
        lanes: R.
        group: its latent shape and prompt length; None for the native ones.
        beat: called ahead of every forward pass.

    Returns:
        The trial, with its parts; not exact where places show all the same.

    Raises:
        torch.OutOfMemoryError: when that many lanes do not fit.
    """
    if model.launch == "compiled":  # its layers are no longer there to be called
        return replace(try_lanes(model, lanes, group=group, beat=beat), held=True)
    group = group or native_group(model)
    plain = replace(model, unet=plain_unet(model.unet), launch="eager")
    trial = try_lanes(model, lanes, group=group, beat=beat)
    if trial.exact and holds(plain, trial, group=group, beat=beat):
        return replace(trial, held=True)
    parts: Parts = ()
    for number in range(ROUNDS):
        found = _find_parts(plain, lanes, group, parts, first=number * DRAWS, beat=beat)
        if found == parts:
            break
        parts = found
        trial = try_lanes(model, lanes, group=group, parts=parts, beat=beat)
        if trial.exact and holds(plain, trial, group=group, beat=beat):
            log.info("layers run in parts", action="tune", lanes=lanes, layers=len(parts), shape=group.shape)
            return replace(trial, held=True)
    return replace(trial, exact=False)


@torch.no_grad()
def _find_parts(
    model: LoadedModel, lanes: int, group: Group, parts: Parts, *, first: int, beat: Beat
) -> Parts:
    """Return the parts with which no layer shows places any more, beginning with those that are known."""
    search = _Search(model.unet, lanes, dict(parts))
    for seed in range(first, first + DRAWS):
        beat()
        drawn = Lanes.stack(random_lanes(model, lanes, group, seed=seed))
        with lane_layers(model.unet, lanes, parts=search.parts), search.on():
            predict_noise(model, drawn, width=lanes)
    return search.parts


class _Search:
    """Looks at every layer while a UNet runs, and runs what shows places in parts from then on."""

    def __init__(self, unet: Any, lanes: int, found: dict[str, int]) -> None:
        self._unet, self._lanes, self._found = unet, lanes, found
        self._names = {module: name for name, module in unet.named_modules()}
        self._busy = False

    @property
    def parts(self) -> Parts:
        """What was found."""
        return tuple(sorted(self._found.items()))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look at the layers in this `with`, the inner ones first."""
        layers = [layer for layer, name in self._names.items() if name]  # the UNet itself has none
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
        if (
            self._busy
            or not over_lanes(output, self._lanes)
            or not self._takes_lanes((*given, *named.values()))
        ):
            return None
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
        return bool(tensors) and all(over_lanes(value, self._lanes) for value in tensors)

    def _moved(self, value: Any) -> Any:
        """Return a tensor with its lanes one place further, in the same memory format: kernels go by that."""
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_like(value, memory_format=torch.preserve_format).copy_(value.roll(1, dims=0))

    def _halve(self, layer: torch.nn.Module) -> bool:
        """Call a layer for fewer lanes at a time; tell whether that is possible."""
        name = self._names[layer]
        size = self._found.get(name, self._lanes)
        if size == 1:
            return False
        own = isinstance(layer, _OWN_KERNELS)
        alike = [layer] if own else [other for other in self._names if type(other) is type(layer)]
        for other in alike:
            self._found[self._names[other]] = (size // 2 if size % 2 == 0 else 1) if own else 1
        layers: LaneLayers = layers_of(self._unet)
        for other in alike:
            layers.part(self._names[other], self._found[self._names[other]])
        return True
