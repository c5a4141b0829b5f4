"""A sampler's noise scheduler, built and called as StableDiffusionPipeline does, or refused with a reason."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.parameters import MAX_DISTILLED_STEPS
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS, check_schedule


def positioned_scheduler(
    *,
    sampler: str,
    schedule: str,
    num_inference_steps: int,
    scheduler_config: Mapping[str, Any],
    seed: int,
) -> Any:
    """Build a noise scheduler and set its steps.

    It lives on the CPU whatever the device: its tables are read as scalars, and scalars on the CPU mix with
    tensors on any device without a synchronisation.

    Args:
        sampler: a name from `storage.samplers`.
        schedule: likewise.
        num_inference_steps: 1 to 1000.
        scheduler_config: the model's, after the pipeline's own fix-ups (`LoadedModel.scheduler_config`).
        seed: the job's; the Brownian tree of DPM++ SDE is seeded with it.

    Raises:
        BadInputError: when the combination cannot be rendered; one sentence says why.
    """
    check_combination(sampler, schedule, num_inference_steps, scheduler_config)
    try:
        scheduler = build_scheduler(sampler, schedule, scheduler_config, seed=seed)
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, NotImplementedError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise BadInputError(
            f"Sampler {sampler} cannot do {num_inference_steps} steps of schedule {schedule} with this "
            f"model's noise scheduler config ({error}); take other steps or another sampler."
        ) from error
    _check_positions(sampler, schedule, scheduler)
    return scheduler


def build_scheduler(sampler: str, schedule: str, scheduler_config: Mapping[str, Any], *, seed: int) -> Any:
    """Build a noise scheduler as diffusers users do: `Class.from_config(model's config, **overrides)`.

    Returns:
        The scheduler, before `set_timesteps`.
    """
    entry = SAMPLERS[sampler]
    overrides: dict[str, Any] = dict(entry.overrides)
    if schedule != "default":
        # The model's config may ask for another spacing, and the classes refuse two at once.
        overrides |= {option: name == schedule for name, option in SCHEDULE_OPTIONS.items()}
    scheduler_class = getattr(diffusers, entry.scheduler_class)
    if "noise_sampler_seed" in inspect.signature(scheduler_class.__init__).parameters:
        overrides["noise_sampler_seed"] = seed
    return scheduler_class.from_config(dict(scheduler_config), **overrides)


def check_combination(
    sampler: str, schedule: str, num_inference_steps: int, scheduler_config: Mapping[str, Any]
) -> None:
    """Refuse what diffusers would crash on or render as garbage.

    Raises:
        BadInputError: one sentence that names the sampler and says what to do.
    """
    check_schedule(sampler, schedule)
    if sampler in ("lcm", "tcd") and num_inference_steps > MAX_DISTILLED_STEPS:
        raise BadInputError(
            f"Sampler {sampler} knows at most {MAX_DISTILLED_STEPS} steps, not {num_inference_steps}; "
            f"ask for fewer, or take another sampler."
        )
    effective = _effective_config(sampler, scheduler_config)
    if str(effective.get("variance_type", "")).startswith("learned"):
        raise BadInputError(
            f"This model predicts its variance ({effective['variance_type']}), which sampler {sampler} does "
            f"not support here; take another sampler."
        )
    prediction = scheduler_config.get("prediction_type", "epsilon")
    if effective.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise BadInputError(
            f"This model's noise scheduler config combines zero terminal SNR with epsilon prediction, which "
            f"sampler {sampler} cannot start from; take a sampler that ignores it, e.g. lms."
        )
    if "prediction_type" not in effective and prediction != "epsilon":
        raise BadInputError(
            f"Sampler {sampler} knows epsilon prediction only, not this model's {prediction}."
        )
    if sampler in ("ddim", "ddpm", "pndm") and _runs_off_the_end(effective, num_inference_steps):
        raise BadInputError(
            f"Sampler {sampler} has one step less than {num_inference_steps} with this model (leading "
            f"spacing, steps_offset {effective['steps_offset']}); ask for {num_inference_steps - 1} steps."
        )


def _check_positions(sampler: str, schedule: str, scheduler: Any) -> None:
    """Refuse more steps than the spacing has places for, where that breaks the solver.

    The multistep and singlestep solvers divide by differences of log-SNR: two equal sigmas give 0 / 0, and a
    first timestep that comes twice makes diffusers' `index_for_timestep` begin at the second and run off the
    end.
    """
    if not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        return
    # The last sigma may repeat the one before it: SA-Solver ends so.
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas[:-1]
    if bool((timesteps[:1] == timesteps[1:2]).any()) or bool((sigmas[1:] == sigmas[:-1]).any()):
        raise BadInputError(
            f"Sampler {sampler} has no {len(timesteps)} different steps with schedule {schedule}; "
            f"ask for fewer steps, or another schedule."
        )


def _runs_off_the_end(effective: Mapping[str, Any], num_inference_steps: int) -> bool:
    """Tell whether leading spacing, shifted by steps_offset, passes the last training timestep."""
    trained = int(effective["num_train_timesteps"])
    last = (num_inference_steps - 1) * (trained // max(1, num_inference_steps)) + int(
        effective["steps_offset"]
    )
    return effective["timestep_spacing"] == "leading" and last >= trained


def _effective_config(sampler: str, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that the sampler's class would get, its own defaults included."""
    entry = SAMPLERS[sampler]
    parameters = inspect.signature(getattr(diffusers, entry.scheduler_class).__init__).parameters
    # diffusers drops what an earlier class had only by default (`ConfigMixin.extract_init_dict`).
    defaulted = scheduler_config.get("_use_default_values", ())
    given = {k: v for k, v in scheduler_config.items() if k in parameters and k not in defaulted}
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    return defaults | given | dict(entry.overrides)


def step_arguments(scheduler: Any, generator: torch.Generator, *, eta: float) -> dict[str, Any]:
    """Return what `StableDiffusionPipeline.prepare_extra_step_kwargs` passes to `step`."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": eta, "generator": generator}
    return {name: value for name, value in offered.items() if name in accepted}
