"""How many lanes: measured, kept in the database, the same for all workers of one kind.

A picture's bytes may depend on R, and R on how fast this machine was when it was tried out. So the first
worker of a kind (model, device, dtype, mode, libraries) measures, and every other one takes what it found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any, Protocol

import structlog
import torch

from storage.errors import BadInputError
from worker.engine.admission import LanePlan, LatentShape
from worker.engine.faults import is_out_of_memory
from worker.engine.trial import Beat, Trial, native_shape, nothing, try_lanes
from worker.models.load import LoadedModel

log = structlog.get_logger()

MODES = ("exact", "throughput", "reference")
CANDIDATES = (2, 4, 8, 16)
FEWEST = CANDIDATES[0]
ENOUGH = 0.9  # of the best lanes/s: fewer lanes cost a job that is alone less
TRIAL_SECONDS = 60.0  # once trials have taken this long, no larger candidate is tried


class Tunings(Protocol):
    """Where what was measured is kept; `storage.jobstore.JobStore` is one."""

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is kept for workers of this kind."""
        ...

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a tuning unless there is one; return the one that is kept."""
        ...


def choose_lanes(
    model: LoadedModel,
    *,
    mode: str,
    lanes: int | None,
    numerics: Mapping[str, Any] | None = None,
    tunings: Tunings | None = None,
) -> int:
    """Return the number of lanes R to run with.

    Args:
        model: on the device where it will run.
        mode: `exact`, `throughput` or `reference`.
        lanes: what the user pinned, or None for the smallest count within 10 % of the best lanes/s (in exact
            mode, among those that are exact with this model here).
        numerics: the numerics record: what makes a kind of worker.
        tunings: where the choice is looked up and kept; None measures anew.

    Raises:
        BadInputError: for an unknown mode, or lanes that the mode cannot run with.
    """
    if mode not in MODES:
        raise BadInputError(f"There is no mode {mode!r}; choose {', '.join(MODES)}.")
    if mode == "reference":
        if lanes not in (None, FEWEST):
            raise BadInputError(f"--mode reference runs 2 lanes, not {lanes}; leave --lanes out.")
        return FEWEST
    if lanes is not None:
        _check_pinned(lanes, mode)
        return lanes if mode == "throughput" else _best(_try(model, (lanes,)), model, exact=True).lanes
    if tunings is None:
        return _measure(model, mode).lanes
    facts = {**(numerics or {}), "cores": _cores(), "shape": list(native_shape(model))}
    kept = tunings.tuning(facts)
    if kept is None:
        kept = tunings.keep_tuning(facts, asdict(_measure(model, mode)))
    return int(kept["lanes"])


def plan_shape(model: LoadedModel, shape: LatentShape, lanes: int, beat: Beat = nothing) -> LanePlan:
    """Plan how exact mode runs a latent shape: at `lanes` if exact for it, else one request at a time.

    A request alone in two lanes has no company that could change it, so it is exact by construction.
    """
    if try_lanes(model, lanes, shape=shape, beat=beat).exact:
        return LanePlan(lanes=lanes)
    return LanePlan(lanes=FEWEST, alone=True)


def smaller_plan(
    model: LoadedModel, shape: LatentShape, plan: LanePlan, *, exact: bool, beat: Beat = nothing
) -> LanePlan | None:
    """Plan a latent shape anew, after it ran out of memory under `plan`.

    Returns:
        A plan of half as many lanes or fewer, tried out where it has to be exact; None when not even two fit.
    """
    lanes = plan.lanes
    while (lanes := lanes // 4 * 2) >= FEWEST:
        free_memory(model)
        if not exact:
            return LanePlan(lanes=lanes)
        try:
            return plan_shape(model, shape, lanes, beat)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return None


def free_memory(model: LoadedModel) -> None:
    """Give back what torch keeps for reuse, after a pass that did not fit."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(model: LoadedModel, mode: str) -> Trial:
    trials = _try(model, CANDIDATES)
    best = _best(trials, model, exact=mode == "exact")
    log.info("lanes measured", action="tune", lanes=best.lanes, trials=[asdict(trial) for trial in trials])
    return best


def _try(model: LoadedModel, candidates: Sequence[int]) -> list[Trial]:
    """Try out candidates, the smallest first, until one does not fit or enough time was spent."""
    trials: list[Trial] = []
    began = perf_counter()
    for lanes in candidates:
        if trials and perf_counter() - began > TRIAL_SECONDS:
            break
        failure = None
        try:
            trials.append(try_lanes(model, lanes))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold what the failed pass took
        if failure is not None:
            free_memory(model)
            break
    if not trials:
        raise BadInputError(
            f"The {model.device.type} has too little memory for {candidates[0]} lanes in "
            f"{model.dtype}; take fewer --lanes, or --dtype float16."
        )
    return trials


def _best(trials: Sequence[Trial], model: LoadedModel, *, exact: bool) -> Trial:
    """Return the smallest of the trials that is nearly as fast as the fastest of them."""
    eligible = [trial for trial in trials if trial.exact or not exact]
    if not eligible:
        tried = " or ".join(str(trial.lanes) for trial in trials)
        raise BadInputError(
            f"--mode exact is not possible with {tried} lanes on this {model.device.type}: in {model.dtype} "
            f"with {torch.get_num_threads()} threads a lane's result depends on its position or its "
            f"neighbours; take other --lanes, --dtype float32, or --mode reference."
        )
    fastest = max(trial.lanes_per_second for trial in eligible)
    return min(
        (trial for trial in eligible if trial.lanes_per_second >= ENOUGH * fastest),
        key=lambda trial: trial.lanes,
    )


def _check_pinned(lanes: int, mode: str) -> None:
    if mode == "exact" and (lanes < FEWEST or lanes % 2):
        raise BadInputError(f"--mode exact needs an even number of lanes, 2 or more, not {lanes}.")
    if lanes < FEWEST:
        raise BadInputError(f"--lanes {lanes} is too few: a guided picture takes 2 lanes.")


def _cores() -> int:
    """Count the cores that this process may use."""
    usable = getattr(os, "process_cpu_count", os.cpu_count)  # Python 3.13
    return usable() or 1
