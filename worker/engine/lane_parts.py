"""Which layers treat the lanes of a call differently, and how few lanes at a time make them treat all alike.

A lane's result has to be the same at every place, or exact mode cannot run R lanes. Some kernels break that:
those of some convolutions on GPUs in half precision divide the work at places that have nothing to do with
lanes, and element-wise ones on CPUs treat the last few numbers of each thread by other instructions. (Seen:
21 of 98 convolutions of an SD 1.x-sized UNet at 8 lanes in bfloat16 on an H100; SiLU and GELU with 3 or 6
threads.) Such a layer is called for half of the lanes at a time, a quarter, and so on: one lane at a time
there are no places to tell apart. All other layers go on sharing one call.
"""

from __future__ import annotations

from dataclasses import replace

import structlog
import torch

from worker.engine.admission import Group, Parts
from worker.engine.agreement import same_at_every_place
from worker.engine.forward import Lanes, predict_noise
from worker.engine.layer_search import search_parts
from worker.engine.trial import Beat, Trial, native_group, nothing, random_lanes, try_lanes
from worker.models.load import LoadedModel
from worker.models.variant import plain_unet

log = structlog.get_logger()


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
        A trial that was `compared`, with its parts; not exact where places show all the same, in the
        prediction or in any layer.

    Raises:
        torch.OutOfMemoryError: when that many lanes do not fit, or there is no room to look at them: nobody
            knows then whether they are exact.
    """
    group = group or native_group(model)
    compiled = model.launch == "compiled"  # its layers are no longer there to be called, or looked at
    plain = model if compiled else replace(model, unet=plain_unet(model.unet), launch="eager")
    trial = tried or try_lanes(plain, lanes, group=group, parts=known, beat=beat)
    right = trial.exact and same_at_every_place(plain, trial, group=group, beat=beat)
    if not right and not compiled:
        trial, right = _mended(plain, trial, group, beat)
    if right and plain is not model and model.launch != "eager":  # captured now that it is known what to
        trial = try_lanes(model, lanes, group=group, parts=trial.parts, beat=beat)
        right = trial.exact
    return replace(trial, exact=right, compared=True)


def _mended(model: LoadedModel, trial: Trial, group: Group, beat: Beat) -> tuple[Trial, bool]:
    """Look for parts with which a trial is exact; return it, and whether it is."""
    lanes = trial.lanes

    @torch.no_grad()
    def run(seed: int) -> None:
        beat()
        predict_noise(model, Lanes.stack(random_lanes(model, lanes, group, seed=seed)), width=lanes)

    def try_out(parts: Parts) -> Trial | None:
        tried = try_lanes(model, lanes, group=group, parts=parts, beat=beat)
        right = tried.exact and same_at_every_place(model, tried, group=group, beat=beat)
        return tried if right else None

    found = search_parts(model.unet, lanes, known=trial.parts, run=run, try_out=try_out)
    if found is None:
        return trial, False
    log.info("layers run in parts", action="tune", lanes=lanes, layers=len(found.parts), shape=group.shape)
    return found, True
