"""How a model is run here: how many lanes, in which dtype and layout. Measured, then kept in the database.

A picture's bytes depend on these, and these on how fast this machine was when they were tried out. So the
first worker of a kind (model, device, mode, libraries, what its user left open) measures, and every other one
takes what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import structlog
import torch

from storage.devices import usable_cores
from storage.errors import BadInputError
from storage.worker_options import FEWEST_LANES, check_together
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import Parts
from worker.engine.lane_parts import exact_trial
from worker.engine.planning import free_memory
from worker.engine.trial import TRIAL_SECONDS, Trial, native_group, try_lanes
from worker.models.load import LoadedModel
from worker.models.variant import Variant, launched, run_as, variants

log = structlog.get_logger()

_CANDIDATES = (FEWEST_LANES, 4, 8, 16)
_ALSO_ELSEWHERE = (32,)  # an H100 is a quarter faster at 32 lanes than at 16; no CPU seen is
ENOUGH = 0.9  # of the best lanes/s: fewer lanes cost a job that is alone less
# How much faster another variant has to be: fewer bits cost quality, and noise must not decide on a layout.
WORTH = {"dtype": 1.2, "layout": 1.1}
NEAR = 0.05  # relative error at which a variant computes something else than the model as loaded
VARIANT_LANES = {"cpu": 2}  # what variants are compared at; elsewhere 8, since two lanes fill no GPU


class Tunings(Protocol):
    """Where what was measured is kept; `storage.jobstore.JobStore` is one."""

    def tuning(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is kept for workers of this kind."""
        ...

    def keep_tuning(self, facts: Mapping[str, Any], tuning: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a tuning unless there is one; return the one that is kept."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What whoever starts an engine leaves open, and what not.

    Attributes:
        mode: `exact`, `throughput` or `reference`.
        lanes: R; None for the smallest count within 10 % of the best lanes/s (in exact mode, among those that
            are exact with this model here). A number pins the layout too.
        precisions: what the UNet may compute in if that is faster, from `faster_precisions`.
        launch: how forward passes are launched, one of `storage.worker_options.LAUNCHES`. Variant and R are
            chosen in `eager`, whatever it is.
        crowded: whether other models are on the device. One of them can leave it, so too little memory is
            then an error, torch.OutOfMemoryError, and no reason for fewer lanes.
    """

    mode: str = "exact"
    lanes: int | None = None
    precisions: tuple[str, ...] = ()
    launch: str = "eager"
    crowded: bool = False

    @property
    def exact(self) -> bool:
        """Whether a picture's bytes must not depend on its company."""
        return self.mode == "exact"

    @property
    def divides(self) -> bool:
        """Whether layers can be called in parts: what is compiled has none."""
        return self.launch != "compiled"


def candidates(device: torch.device) -> tuple[int, ...]:
    """Return the numbers of lanes that are tried, in ascending order."""
    return _CANDIDATES if device.type == "cpu" else _CANDIDATES + _ALSO_ELSEWHERE


def tune(
    model: LoadedModel, wishes: Wishes, *, facts: Mapping[str, Any], tunings: Tunings | None = None
) -> tuple[LoadedModel, int, Trial | None]:
    """Choose how to run a model; nothing is measured where its user left nothing open.

    What is kept decides, but in exact mode it is tried out on this very device all the same.

    Args:
        model: on the device where it will run.
        wishes: see there.
        facts: the numerics record of the model as it was loaded: what makes a kind of worker.
        tunings: where the choice is looked up and kept; None measures anew.

    Returns:
        The model as it will be run, R, and its trial; in exact mode there is one.

    Raises:
        BadInputError: for an unknown mode, or lanes that the mode cannot run with.
        torch.OutOfMemoryError: see `Wishes.crowded`.
    """
    check_together(mode=wishes.mode, lanes=wishes.lanes, launch=wishes.launch)
    if wishes.mode == "reference":
        return model, FEWEST_LANES, None
    found = variants(model, precisions=wishes.precisions, layouts=wishes.lanes is None)
    trial: Trial | None = None
    known: Parts = ()
    if wishes.lanes is not None and len(found) == 1:
        variant, lanes = found[0], wishes.lanes
    else:
        facts = {
            **facts,
            "cores": usable_cores(),
            "shape": list(native_group(model).shape),
            "variants": [asdict(variant) for variant in found],
            "lanes": wishes.lanes,
            **({} if wishes.divides else {"launch": wishes.launch}),
        }
        kept = tunings.tuning(facts) if tunings else None
        if kept is None:
            measured, trial = _measure(model, wishes, found)
            kept = tunings.keep_tuning(facts, measured) if tunings else measured
            trial = trial if kept == measured else None
        variant, lanes = Variant(dtype=kept["dtype"], layout=kept["layout"]), int(kept["lanes"])
        known = tuple((name, count) for name, count in kept.get("parts", ()))
    model = launched(run_as(model, variant), wishes.launch)
    if wishes.launch != "eager" or (wishes.exact and trial is None):
        trial = _check_runs(model, lanes, wishes, known)
        lanes = trial.lanes
        if known and trial.parts != known:
            log.warning("other layers run in parts than were kept", action="tune", layers=len(trial.parts))
    return model, lanes, trial


def _measure(model: LoadedModel, wishes: Wishes, found: Sequence[Variant]) -> tuple[dict[str, Any], Trial]:
    """Choose a variant at one number of lanes, then the number of lanes for it; say what to keep.

    Where other models are on the device, `worker.shelf` has them leave it first. So lanes that do not fit, or
    that there is no room to compare, are too many for this kind of device, and fewer are kept.
    """
    began = perf_counter()
    variant, first = _fastest(model, wishes, found)
    model = run_as(model, variant)
    trials = [first] if first else []
    for lanes in (wishes.lanes,) if wishes.lanes else candidates(model.device):
        if any(trial.lanes == lanes for trial in trials):
            continue
        if trials and perf_counter() > began + TRIAL_SECONDS:
            break
        trial = _try(model, partial(try_lanes, model, lanes))
        if trial:
            trials.append(trial)
        elif trials:
            break
    if not trials:
        raise _too_little_memory(model, wishes.lanes or FEWEST_LANES, wishes)
    best = _best(trials, model, wishes)
    while wishes.exact and not best.compared:  # only what will be used is looked at this closely
        closely = _try(model, partial(exact_trial, model, best.lanes, tried=best))
        if closely:
            trials = [closely if trial is best else trial for trial in trials]
        else:
            trials = [trial for trial in trials if trial.lanes < best.lanes]  # more take more
        if not trials:
            raise _too_little_memory(model, best.lanes, wishes)
        best = _best(trials, model, wishes)
    tried = {trial.lanes: round(trial.lanes_per_second, 2) for trial in trials}
    log.info("tuned", action="tune", lanes=best.lanes, lanes_per_second=tried, **asdict(variant))
    kept = {"lanes": best.lanes, "lanes_per_second": best.lanes_per_second, **asdict(variant)}
    return kept | ({"parts": [list(part) for part in best.parts]} if best.parts else {}), best


def _fastest(model: LoadedModel, wishes: Wishes, found: Sequence[Variant]) -> tuple[Variant, Trial | None]:
    """Return the fastest variant and its trial; the first, unless another is worth it.

    The trial is None where the first is left although it did not run at so many lanes, or not exactly.
    """
    lanes = wishes.lanes or VARIANT_LANES.get(model.device.type, 8)
    first: Trial | None = None
    best, chosen = found[0], None
    for variant in found:
        try:
            own = run_as(model, variant)
            trial = try_lanes(own, lanes)
            first = first or trial
            if wishes.exact and wishes.divides and not trial.exact:
                trial = exact_trial(own, lanes, tried=trial)
        except (RuntimeError, MemoryError) as error:  # nobody asked for it, so nobody need hear but the log
            if is_device_fault(error):
                raise
            log.info("variant cannot be used", action="tune", reason=str(error), **asdict(variant))
            free_memory(model)
            continue
        if not _near(trial.noise_pred, first.noise_pred) or (wishes.exact and not trial.exact):
            continue
        worth = WORTH["dtype"] if variant.dtype != best.dtype else WORTH["layout"]
        if chosen is None or trial.lanes_per_second >= worth * chosen.lanes_per_second:
            best, chosen = variant, trial
    return best, chosen


def _near(ours: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether two predictions of the same noise differ by rounding only."""
    return bool((ours - right).norm() <= NEAR * right.norm())


def _check_runs(model: LoadedModel, lanes: int, wishes: Wishes, known: Parts) -> Trial:
    """Run the model as it will be run, so that no job waits for a compiler; in exact mode try it out.

    Args:
        model: as it will be run.
        lanes: R.
        wishes: see `tune`.
        known: the layers that are called in parts, as far as somebody has found them.

    Returns:
        The trial of R; less than `lanes` where those are not pinned and the memory is too small for them now.
    """
    pinned = wishes.lanes is not None or wishes.crowded
    fewer = [] if pinned else [count for count in reversed(candidates(model.device)) if count < lanes]
    try:
        counts = (lanes, *fewer)
        look = partial(exact_trial, known=known) if wishes.exact else try_lanes
        trials = (_try(model, partial(look, model, count)) for count in counts)
        trial = next((trial for trial in trials if trial), None)
    except RuntimeError as error:
        if model.launch == "eager":
            raise
        # A device fault too: a capture that fails is one, and the process ends anyway.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{_flag(model)} is not possible here ({reason}); leave it out.") from error
    if trial is None:
        raise _too_little_memory(model, min([lanes, *fewer]), wishes)
    return _best([trial], model, wishes)


def _flag(model: LoadedModel) -> str:
    return "--compile" if model.launch == "compiled" else "--cuda-graphs"


def _try(model: LoadedModel, attempt: Callable[[], Trial]) -> Trial | None:
    """Try out a number of lanes of a model; None when the memory is too small for it."""
    try:
        return attempt()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory(model)  # outside of the except, where the failed pass would still hold its memory
    return None


def _too_little_memory(model: LoadedModel, lanes: int, wishes: Wishes) -> Exception:
    if wishes.crowded:
        return torch.OutOfMemoryError(f"out of memory with {lanes} lanes beside other models")
    lighter = "a smaller --dtype" if model.precision == "float32" else "another device"
    return BadInputError(
        f"The {model.device.type} has too little memory for {lanes} lanes in {model.precision}; "
        f"take fewer --lanes, or {lighter}."
    )


def _best(trials: Sequence[Trial], model: LoadedModel, wishes: Wishes) -> Trial:
    """Return the smallest of the trials that is nearly as fast as the fastest of them.

    Of those that are exact, or may turn out to be with some layers in parts.
    """
    hopeful = not wishes.exact or wishes.divides
    eligible = [trial for trial in trials if trial.exact or (hopeful and not trial.compared)]
    if not eligible:
        tried = " or ".join(str(trial.lanes) for trial in trials)
        instead = [] if model.launch == "eager" else [f"leave {_flag(model)} out"]
        instead += ["take other --lanes"] + ["--dtype float32"] * (model.precision != "float32")
        raise BadInputError(
            f"--mode exact is not possible with {tried} lanes on this {model.device.type}: "
            f"in {model.precision} ({model.layout}) with {torch.get_num_threads()} threads a lane's result "
            f"depends on its position or its neighbours; {', '.join(instead)}, or --mode reference."
        )
    fastest = max(trial.lanes_per_second for trial in eligible)
    return min(
        (trial for trial in eligible if trial.lanes_per_second >= ENOUGH * fastest),
        key=lambda trial: trial.lanes,
    )
