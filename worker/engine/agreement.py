"""Do places matter, do fewer lanes agree with R? Asked of every layer, since a result in few bits hides much.

In half precision two kernels that add up in another order round to the same number most of the time. (Seen on
an H100 in bfloat16: with 12 lanes the prediction was that of 16 for one random lane of three, and for the
others it was not.) So many random lanes are compared, and of each not only what the UNet predicts, but what
every layer of it has put out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from time import perf_counter

import torch

from worker.device_faults import is_out_of_memory
from worker.engine.admission import Group, Parts
from worker.engine.digests import draws, lane_digests, listening
from worker.engine.forward import Lanes, predict_noise
from worker.engine.trial import TRIAL_SECONDS, Beat, Trial, native_group, nothing, random_lanes
from worker.models.load import LoadedModel

NARROWER = (2, 4, 8, 12, 16, 24, 32, 48)  # lanes that may do for R


@torch.no_grad()
def same_at_every_place(model: LoadedModel, trial: Trial, *, group: Group, beat: Beat = nothing) -> bool:
    """Tell whether each of R lanes has the same bits at another place, in every layer.

    Args:
        model: on its device; of a compiled one the prediction is compared, whose layers are no longer there.
        trial: of R, with its parts.
        group: its latent shape and prompt length.
        beat: called ahead of every forward pass.

    Raises:
        torch.OutOfMemoryError: when there is no room to look at that many lanes.
    """
    full = trial.lanes
    for seed, within in draws(model.unet, listens=model.launch == "eager"):
        lanes = random_lanes(model, full, group, seed=1000 + seed)
        places = 1 if seed % 2 == 0 else max(1, full // 2 - 1)
        with within:
            here, there = (
                _digests(model, moved, full, full=full, parts=trial.parts, beat=beat)
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

    def digests(lanes: Sequence[Lanes], width: int, within: AbstractContextManager[object]) -> torch.Tensor:
        with within:
            return _digests(model, lanes, width, full=full, parts=parts, beat=beat)

    drawn = [(random_lanes(model, full, group, seed=seed), within) for seed, within in draws(model.unet)]
    right = [digests(lanes, full, within) for lanes, within in drawn]
    for width in widths:
        if perf_counter() > began + TRIAL_SECONDS:
            return
        if all(
            torch.equal(digests(part, width, within), found[:, own])
            for (lanes, within), found in zip(drawn, right, strict=True)
            for part, own in _passes(lanes, width)
        ):
            yield width


def _passes(lanes: list[Lanes], width: int) -> Iterator[tuple[list[Lanes], slice]]:
    """Divide lanes into passes of a width; two more have lanes at other places, or among idle ones."""
    last = len(lanes)
    for start in (*range(0, last, width), last - width, last - 1):
        own = slice(start, min(start + width, len(lanes)))
        yield lanes[own], own


def _digests(
    model: LoadedModel, lanes: Sequence[Lanes], width: int, *, full: int, parts: Parts, beat: Beat
) -> torch.Tensor:
    """Return what each layer put out for each lane, in a number each: (layers, lanes) int64."""
    beat()
    with listening(model.unet, width, silent=model.launch != "eager") as found:
        noise_pred = predict_noise(model, Lanes.stack(lanes), width=width, full=full, parts=parts)
    own = [heard[: len(lanes)] for heard in found]
    return torch.stack([*own, lane_digests(noise_pred)])
