"""How many lanes a pipeline's denoiser gets: measured, then kept, as `worker.engine.tuning` does."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import structlog
import torch

from storage.devices import usable_cores
from storage.errors import BadInputError
from storage.worker_options import FEWEST_LANES, check_together
from worker.coalescing.passes import widest_call
from worker.coalescing.proof import Sharing, try_width
from worker.engine.faults import is_out_of_memory
from worker.engine.trial import TRIAL_SECONDS
from worker.engine.tuning import CANDIDATES, ENOUGH, Tunings
from worker.models.device import dtype_name
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
    fits = False
    for lanes in sorted({max(widest, candidate) for candidate in CANDIDATES}):
        if speeds and perf_counter() > began + TRIAL_SECONDS:
            break
        try:
            trials = [
                try_width(model.denoiser, sample, axes, lanes)
                for axes, sample in zip(sharing.axes, sharing.samples, strict=True)
            ]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        fits = True
        if not exact or all(trial.exact for trial in trials):
            speeds[lanes] = min(trial.lanes_per_second for trial in trials)
    if not speeds:
        why = "no number of lanes is exact here" if fits else "no room for calls side by side"
        log.warning("calls run one by one", action="tune", reason=why)
        speeds[max(FEWEST_LANES, widest)] = 0.0
    best = min(lanes for lanes, speed in speeds.items() if speed >= ENOUGH * max(speeds.values()))
    rounded = {lanes: round(speed, 2) for lanes, speed in speeds.items()}
    log.info("tuned", action="tune", lanes=best, lanes_per_second=rounded)
    return {
        "lanes": best,
        "lanes_per_second": speeds[best],
        "dtype": dtype_name(model.dtype),
        "layout": model.layout,
    }
