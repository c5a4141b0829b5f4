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

from worker.engine.admission import Group, Parts
from worker.engine.agreement import same_at_every_place
from worker.engine.faults import is_out_of_memory
from worker.engine.forward import Lanes, predict_noise
from worker.engine.lane_layers import lane_layers, layers_over_lanes, over_lanes
from worker.engine.trial import Beat, Trial, native_group, nothing, random_lanes, try_lanes
from worker.models.load import LoadedModel
from worker.models.variant import plain_unet

log = structlog.get_logger()

DRAWS = 6  # of random lanes: what a place changes does not show in every number
ROUNDS = 2  # of as many draws, first for single layers, then for what they stand in
# Their kernels depend on their own sizes; what any other layer does, all of its class do.
_OWN_KERNELS = (torch.nn.Conv2d, torch.nn.Linear)


def exact_trial(
    model: LoadedModel,
    lanes: int,
    *,
    group: Group | None = None,
    known: Parts = (),
    tried: Trial | None = None,
    beat: Beat = nothing,
) -> Trial:
    """Try out R lanes; where places show, find the layers to be called in parts, and try again with these.

    Args:
        model: on its device.
        lanes: R.
        group: its latent shape and prompt length; None for the native ones.
        known: layers that another worker of this kind calls in parts, if that was asked before.
        tried: a trial of these, where the model, plainly launched, has just had one.
        beat: called ahead of every forward pass.

    Returns:
        A trial that was `compared`, with its parts; not exact where places show all the same.

    Raises:
        torch.OutOfMemoryError: when that many lanes do not fit.
    """
    group = group or native_group(model)
    compiled = model.launch == "compiled"  # its layers are no longer there to be called, or looked at
    plain = model if compiled else replace(model, unet=plain_unet(model.unet), launch="eager")
    trial = tried or try_lanes(plain, lanes, group=group, parts=known, beat=beat)
    try:
        right = trial.exact and same_at_every_place(plain, trial, group=group, beat=beat)
        if not right and not compiled:
            trial, right = _mended(plain, trial, group, beat)
    except Exception as error:
        if not is_out_of_memory(error):
            raise  # R fits, but there is no room to look at it
        right = False
    if right and plain is not model and model.launch != "eager":  # captured now that it is known what to
        trial = try_lanes(model, lanes, group=group, parts=trial.parts, beat=beat)
        right = trial.exact
    return replace(trial, exact=right, compared=True)


def _mended(model: LoadedModel, trial: Trial, group: Group, beat: Beat) -> tuple[Trial, bool]:
    """Look for parts with which a trial is exact; return it, and whether it is."""
    lanes = trial.lanes
    search = _Search(model.unet, lanes, dict(trial.parts))
    for number in range(2 * ROUNDS):
        _look(model, search, group, first=number * DRAWS, inside_only=number < ROUNDS, beat=beat)
        trial = try_lanes(model, lanes, group=group, parts=search.parts, beat=beat)
        if trial.exact and same_at_every_place(model, trial, group=group, beat=beat):
            layers = len(search.parts)
            log.info("layers run in parts", action="tune", lanes=lanes, layers=layers, shape=group.shape)
            return trial, True
    return trial, False


@torch.no_grad()
def _look(
    model: LoadedModel, search: _Search, group: Group, *, first: int, inside_only: bool, beat: Beat
) -> None:
    """Run some draws of random lanes, and look at the layers meanwhile."""
    for seed in range(first, first + DRAWS):
        beat()
        drawn = Lanes.stack(random_lanes(model, search.lanes, group, seed=seed))
        places = 1 if seed % 2 == 0 else max(1, search.lanes // 2 - 1)
        with lane_layers(model.unet, search.lanes, parts=search.parts), search.on(places, inside_only):
            predict_noise(model, drawn, width=search.lanes)


class _Search:
    """Looks at layers while a UNet runs, and runs what shows places in parts from then on.

    Attributes:
        lanes: of a forward pass.
    """

    def __init__(self, unet: Any, lanes: int, found: dict[str, int]) -> None:
        self.lanes = lanes
        self._unet, self._found = unet, found
        self._names = {module: name for name, module in unet.named_modules() if name}
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
            layers_over_lanes(self._unet).divide(self._names[other], lanes)
        self._changed = True
        return True
