"""How one group is run: at R lanes, at fewer where memory is short, or one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from storage.worker_options import FEWEST_LANES
from worker.device_faults import is_out_of_memory
from worker.engine.admission import Group, LanePlan
from worker.engine.agreement import NARROWER, agreeing
from worker.engine.lane_parts import exact_trial
from worker.engine.trial import Beat, nothing, try_lanes
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel


def plan_group(
    model: LoadedModel,
    group: Group,
    lanes: int,
    *,
    exact: bool,
    widths: Sequence[int] = NARROWER,
    beat: Beat = nothing,
) -> LanePlan:
    """Plan how a group is run: at `lanes`, or, where that would not be exact, one request at a time.

    A request alone in two lanes has no company that could change it, so it is exact by construction. What is
    compiled or captured is so here, before any request is in it, for one width only.

    Raises:
        torch.OutOfMemoryError: when that many lanes of it do not fit, or cannot be looked at.
    """
    eager = model.launch == "eager"
    if not exact and eager:
        return LanePlan(lanes=lanes)
    if not exact:
        try_lanes(model, lanes, group=group, beat=beat)
        return LanePlan(lanes=lanes)
    trial = exact_trial(model, lanes, group=group, beat=beat)
    if trial.exact:
        narrower = agreeing(model, trial, group=group, widths=widths, beat=beat) if eager else ()
        return LanePlan(lanes=lanes, narrower=narrower, parts=trial.parts)
    if not eager:
        try_lanes(model, FEWEST_LANES, group=group, beat=beat)
    return LanePlan(lanes=FEWEST_LANES, alone=True)


def fitting_plan(model: LoadedModel, lanes: int, plan: Callable[[int], LanePlan]) -> LanePlan | None:
    """Plan a group at `lanes`, or else at half as many, and so on.

    Args:
        model: on its device.
        lanes: R.
        plan: plans it at a number of lanes, see `plan_group`.

    Returns:
        A plan that fits the memory, as far as it was tried out; None when not even two lanes do.
    """
    again = model.launch == "cuda_graphs"  # once without the memory that graphs of other groups hold
    while lanes >= FEWEST_LANES:
        try:
            return plan(lanes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory(model)
        if not again:
            lanes = fewer_lanes(lanes)
        again = False
    return None


def fewer_lanes(lanes: int) -> int:
    """Return the largest even number that is at most half of `lanes`."""
    return lanes // 4 * 2


def free_graphs(model: LoadedModel) -> bool:
    """Give back what CUDA graphs hold, which are captured again when needed; tell whether there were any."""
    if not isinstance(model.unet, GraphedUnet) or not model.unet.captured:
        return False
    free_memory(model)
    return True


def free_memory(model: LoadedModel) -> None:
    """Give back what torch keeps for reuse, after a pass that did not fit."""
    if model.launch == "cuda_graphs":
        model.unet.clear()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
