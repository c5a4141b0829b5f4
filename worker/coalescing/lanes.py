"""How many lanes a pipeline's denoiser gets: measured, then kept, as `worker.engine.tuning` does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import structlog
import torch

from storage.devices import usable_cores
from storage.errors import BadInputError
from storage.worker_options import FEWEST_LANES, check_together
from worker.coalescing.drawing import masks_of
from worker.coalescing.passes import widest_call
from worker.coalescing.proof import Sharing
from worker.coalescing.trying import UNTRIABLE, Trials
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import Parts
from worker.engine.trial import TRIAL_SECONDS
from worker.engine.tuning import ENOUGH, Tunings, candidates
from worker.models.pipeline import LoadedPipeline

log = structlog.get_logger()


def choose_lanes(
    model: LoadedPipeline,
    sharing: Sharing,
    *,
    mode: str,
    lanes: int | None,
    facts: Mapping[str, Any],
    tunings: Tunings | None,
) -> int:
    """Choose R: the fewest lanes within 10 % of the best lanes/s; in exact mode, among those that are exact.

    Where none is, the calls run one by one at R's place, which is exact too: nobody is refused for it.

    Args:
        model: on the device where it will run.
        sharing: what was learned of its calls.
        mode: the engine's.
        lanes: R, where its user chose it.
        facts: the numerics record of the model: what makes a kind of worker.
        tunings: where the choice is looked up and kept; None measures anew.

    Raises:
        BadInputError: for an unknown mode, or fewer lanes than one call takes.
    """
    check_together(mode=mode, lanes=lanes, launch="eager")
    widest = widest_call(sharing)
    if lanes is not None and lanes < widest:
        raise BadInputError(
            f"A {model.family} calls its denoiser with {widest} lanes; start with --lanes {widest} or more."
        )
    if lanes is not None or mode == "reference" or sharing.reason:
        return lanes or max(FEWEST_LANES, widest)
    facts = {**facts, "cores": usable_cores(), "shape": list(model.native_size), "way": "coalescing"}
    kept = tunings.tuning(facts) if tunings else None
    if kept is None:
        measured = _measure(model, sharing, exact=mode == "exact")
        kept = tunings.keep_tuning(facts, measured) if tunings else measured
    return int(kept["lanes"])


@torch.no_grad()
def _measure(model: LoadedPipeline, sharing: Sharing, *, exact: bool) -> dict[str, Any]:
    began = perf_counter()
    widest = widest_call(sharing)
    speeds: dict[int, float] = {}
    for lanes in sorted({max(widest, candidate) for candidate in candidates(model.device)}):
        if speeds and perf_counter() > began + TRIAL_SECONDS:
            break
        try:
            speed = _speed(model, sharing, lanes, exact=False)
        except torch.OutOfMemoryError:
            break
        if speed is None:
            break
        speeds[lanes] = speed
    why = "" if speeds else "no room for calls side by side"
    looked_at: set[int] = set()
    # Only what will be used is looked at closely.
    while exact and speeds and (best := _fewest(speeds)) not in looked_at:
        looked_at.add(best)
        if len(looked_at) > 1 and perf_counter() > began + TRIAL_SECONDS:
            why, speeds = "looking for a number of lanes that is exact takes too long here", {}
            break
        try:
            speed = _speed(model, sharing, best, exact=True)
        except torch.OutOfMemoryError:
            speeds = {lanes: known for lanes, known in speeds.items() if lanes < best}  # more need more
            why = "no room to look at calls side by side"
            continue
        if speed is None:
            del speeds[best]
            why = "no number of lanes is exact here"
        else:
            speeds[best] = speed
    best = _fewest(speeds)
    if not speeds:
        log.warning("calls run one by one", action="tune", reason=why)
        best = max(FEWEST_LANES, widest)
        speeds[best] = 0.0
    rounded = {lanes: round(speed, 2) for lanes, speed in speeds.items()}
    log.info("tuned", action="tune", lanes=best, lanes_per_second=rounded)
    return {
        "lanes": best,
        "lanes_per_second": speeds[best],
        "dtype": model.precision,
        "layout": model.layout,
    }


def _fewest(speeds: Mapping[int, float]) -> int:
    """Return the fewest lanes that are nearly as fast as the fastest; 0 where there are none."""
    return min(
        (lanes for lanes, speed in speeds.items() if speed >= ENOUGH * max(speeds.values())), default=0
    )


def _speed(model: LoadedPipeline, sharing: Sharing, lanes: int, *, exact: bool) -> float | None:
    """Measure lanes/s of the slowest kind of call; None where so many are not `exact`.

    Raises:
        torch.OutOfMemoryError: where so many do not fit.
    """
    slowest = math.inf
    for axes, sample in zip(sharing.axes, sharing.samples, strict=True):
        parts: Parts | None
        try:
            trials, parts = Trials(model.denoiser, sample, axes, lanes), ()
            if exact:
                parts = trials.exact_parts()
            if parts is None and masks_of(axes.inputs, sample.inputs, sample.inputs):
                parts = Trials(model.denoiser, sample, axes, lanes, masks=False).exact_parts()
            if parts is None:
                return None
            slowest = min(slowest, trials.lanes_per_second(parts=parts))
        except UNTRIABLE as error:
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from None  # a CPU raises another
            if is_device_fault(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            log.warning("calls cannot be tried out", action="tune", lanes=lanes, reason=reason)
            return None
    return slowest
