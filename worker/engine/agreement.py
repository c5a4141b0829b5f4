"""Do places matter, do fewer lanes agree with R? Asked of every layer, since a result in few bits hides much.

In half precision two kernels that add up in another order round to the same number most of the time. (Seen on
an H100 in bfloat16: with 12 lanes the prediction was that of 16 for one random lane of three, and for the
others it was not.) So many random lanes are compared, and of each not only what the UNet predicts, but what
every layer of it has put out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from worker.engine.admission import Group, Parts
from worker.engine.faults import is_out_of_memory
from worker.engine.forward import Lanes, predict_noise
from worker.engine.lane_layers import over_lanes
from worker.engine.trial import TRIAL_SECONDS, Beat, Trial, native_group, nothing, random_lanes
from worker.models.load import LoadedModel

NARROWER = (2, 4, 8, 12, 16, 24, 32, 48)  # lanes that may do for R
DRAWS = 4  # of R random lanes each, in half precision; in float32 another order shows in more numbers
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def same_at_every_place(model: LoadedModel, trial: Trial, *, group: Group, beat: Beat = nothing) -> bool:
    """Tell whether each of R lanes has the same bits at another place, in every layer.

    Args:
        model: on its device; of a compiled one the prediction is compared, whose layers are no longer there.
        trial: of R, with its parts.
        group: its latent shape and prompt length.
        beat: called ahead of every forward pass.
    """
    full = trial.lanes
    for seed in range(_draws(model)):
        lanes = random_lanes(model, full, group, seed=1000 + seed)
        places = 1 if seed % 2 == 0 else max(1, full // 2 - 1)
        here, there = (
            _digests(model, moved, full, rows=full, parts=trial.parts, beat=beat)
            for moved in (lanes, lanes[-places:] + lanes[:-places])
        )
        if not torch.equal(here.roll(places, dims=1), there):
            return False
    return True


@torch.no_grad()
def agreeing(
    model: LoadedModel,
    trial: Trial,
    *,
    group: Group | None = None,
    widths: Sequence[int] = NARROWER,
    beat: Beat = nothing,
) -> tuple[int, ...]:
    """Return fewer lanes, in ascending order, with which a lane's result is bitwise that of R lanes.

    Args:
        model: on its device, launched plainly.
        trial: an exact one of this model and group.
        group: its latent shape and prompt length; None for the native ones.
        widths: that are tried, in ascending order.
        beat: called ahead of every forward pass.
    """
    found: list[int] = []
    try:
        for width in _agreeing(model, trial, group or native_group(model), widths, beat):
            found.append(width)  # noqa: PERF402 - what was found before memory ran out counts
    except Exception as error:
        if not is_out_of_memory(error):
            raise  # else R does, which fits
    return tuple(found)


def _agreeing(
    model: LoadedModel, trial: Trial, group: Group, widths: Sequence[int], beat: Beat
) -> Iterator[int]:
    began = perf_counter()
    full, parts = trial.lanes, trial.parts
    widths = [width for width in widths if width < full]
    if not widths:
        return
    drawn = [random_lanes(model, full, group, seed=seed) for seed in range(_draws(model))]
    right = [_digests(model, lanes, full, rows=full, parts=parts, beat=beat) for lanes in drawn]
    for width in widths:
        if perf_counter() > began + TRIAL_SECONDS:
            return
        if all(
            torch.equal(_digests(model, part, width, rows=full, parts=parts, beat=beat), digests[:, own])
            for lanes, digests in zip(drawn, right, strict=True)
            for part, own in _passes(lanes, width)
        ):
            yield width


def _draws(model: LoadedModel) -> int:
    return 2 if model.dtype == torch.float32 else DRAWS


def _passes(lanes: list[Lanes], width: int) -> Iterator[tuple[list[Lanes], slice]]:
    """Divide lanes into passes of a width; two more have lanes at other places, or among idle ones."""
    last = len(lanes)
    for start in (*range(0, last, width), last - width, last - 1):
        own = slice(start, min(start + width, len(lanes)))
        yield lanes[own], own


def _digests(
    model: LoadedModel, lanes: Sequence[Lanes], width: int, *, rows: int, parts: Parts, beat: Beat
) -> torch.Tensor:
    """Return what each layer put out for each lane, in a number each: (layers, lanes) int64."""
    beat()
    with _listening(model.unet, width, silent=model.launch != "eager") as found:
        noise_pred = predict_noise(model, Lanes.stack(lanes), width=width, rows=rows, parts=parts)
    own = [digest[: len(lanes)] for digest in found]
    return torch.stack([*own, _digest(noise_pred, len(lanes))])


@contextmanager
def _listening(unet: Any, lanes: int, *, silent: bool) -> Iterator[list[torch.Tensor]]:
    """Collect the digests of what a UNet's layers put out meanwhile, in the order in which they run."""
    found: list[torch.Tensor] = []

    def hear(_layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
        if over_lanes(output, lanes):
            found.append(_digest(output, lanes))

    layers = [] if silent else [layer for layer in unet.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(hear) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _digest(output: torch.Tensor, lanes: int) -> torch.Tensor:
    """Return a number for each lane in which every bit of its rows counts, (lanes,) int64.

    Integers add up to the same in any order. Each is weighted by a hash of its place, so that two that were
    rounded up and down do not make up for each other.
    """
    numbers = output.reshape(lanes, -1)
    if numbers.is_floating_point():
        numbers = numbers.contiguous().view(_AS_INTEGERS[numbers.element_size()])
    weights = _hashes(numbers.shape[1], output.device)
    return torch.stack([(lane * weights).sum() for lane in numbers])  # one by one, which takes little memory


def _hashes(count: int, device: torch.device) -> torch.Tensor:
    """Return odd numbers that look random, (count,) int64, by shifts and factors of known mixers."""
    numbers = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    numbers = (numbers ^ (numbers >> 33)) * -0x00AE502812AA7333
    return (numbers ^ (numbers >> 33)) | 1
