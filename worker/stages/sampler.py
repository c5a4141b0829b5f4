"""A sampler's noise scheduler, built and called as StableDiffusionPipeline does, or refused with a reason."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.parameters import MAX_DISTILLED_STEPS
from storage.samplers import OWN_SAMPLER, SAMPLERS, SCHEDULE_OPTIONS, check_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """What of a job and its model leads from the model's outputs to latents; its noise comes from the seed.

    Attributes:
        sampler: a name from `storage.samplers`.
        schedule: likewise.
        num_inference_steps: 1 to 1000.
        scheduler_config: the model's, after the pipeline's own fix-ups (`LoadedModel.scheduler_config`).
        eta: noise that DDIM and TCD add, 0 to 1; the pipeline passes it to samplers that take it.
    """

    sampler: str
    schedule: str = "default"
    num_inference_steps: int
    scheduler_config: Mapping[str, Any]
    eta: float = 0.0

    @property
    def overrides(self) -> dict[str, Any]:
        """What the sampler and its schedule change in the model's config."""
        overrides = dict(SAMPLERS[self.sampler].overrides)
        if self.schedule != "default":
            # The model's config may ask for another spacing, and the classes refuse two at once.
            overrides |= {option: name == self.schedule for name, option in SCHEDULE_OPTIONS.items()}
        return overrides

    def build(self, *, seed: int = 0) -> Any:
        """Build the noise scheduler as diffusers users do, and set its steps.

        It lives on the CPU whatever the device: its tables are read as scalars, and scalars on the CPU mix
        with tensors on any device without a synchronisation.

        Args:
            seed: the job's; the Brownian tree of DPM++ SDE is seeded with it.

        Raises:
            BadInputError: when the combination cannot be rendered; one sentence says why.
        """
        _check_combination(self)
        scheduler_class = getattr(diffusers, SAMPLERS[self.sampler].scheduler_class)
        overrides = self.overrides
        if "noise_sampler_seed" in inspect.signature(scheduler_class.__init__).parameters:
            overrides["noise_sampler_seed"] = seed
        try:
            scheduler = scheduler_class.from_config(dict(self.scheduler_config), **overrides)
            scheduler.set_timesteps(self.num_inference_steps)
        except (ValueError, NotImplementedError, IndexError, AssertionError, ZeroDivisionError) as error:
            raise BadInputError(
                f"Sampler {self.sampler} cannot do {self.num_inference_steps} steps of schedule "
                f"{self.schedule} with this model's noise scheduler config ({error}); take other steps or "
                f"another sampler."
            ) from error
        _check_positions(self, scheduler)
        return scheduler

    def step_arguments(self, scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
        """Return what `StableDiffusionPipeline.prepare_extra_step_kwargs` passes to `step`."""
        accepted = inspect.signature(scheduler.step).parameters
        offered = {"eta": self.eta, "generator": generator}
        return {name: value for name, value in offered.items() if name in accepted}


def own_sampler(scheduler_config: Mapping[str, Any]) -> str:
    """Name the sampler that a model's own noise scheduler is.

    Args:
        scheduler_config: the model's, with its class.

    Raises:
        BadInputError: when it is none of ours.
    """
    name = scheduler_config.get("_class_name")
    for sampler in SAMPLERS.values():
        wanted = sampler.overrides.items()
        if sampler.scheduler_class == name and all(
            scheduler_config.get(key) == value for key, value in wanted
        ):
            return sampler.name
    raise BadInputError(
        f"This model's own noise scheduler ({name}) is none that sampler {OWN_SAMPLER} could stand for; name "
        f"a sampler (see `promptmill samplers`)."
    )


def _check_combination(settings: SamplerSettings) -> None:
    """Refuse what diffusers would crash on or render as garbage.

    Raises:
        BadInputError: one sentence that names the sampler and says what to do.
    """
    sampler, steps = settings.sampler, settings.num_inference_steps
    check_schedule(sampler, settings.schedule)
    if sampler in ("lcm", "tcd") and steps > MAX_DISTILLED_STEPS:
        raise BadInputError(
            f"Sampler {sampler} knows at most {MAX_DISTILLED_STEPS} steps, not {steps}; "
            f"ask for fewer, or take another sampler."
        )
    effective = _effective_config(settings)
    if str(effective.get("variance_type", "")).startswith("learned"):
        raise BadInputError(
            f"This model predicts its variance ({effective['variance_type']}), which sampler {sampler} does "
            f"not support here; take another sampler."
        )
    prediction = settings.scheduler_config.get("prediction_type", "epsilon")
    if effective.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise BadInputError(
            f"This model's noise scheduler config combines zero terminal SNR with epsilon prediction, which "
            f"sampler {sampler} cannot start from; take a sampler that ignores it, e.g. lms."
        )
    if "prediction_type" not in effective and prediction != "epsilon":
        raise BadInputError(
            f"Sampler {sampler} knows epsilon prediction only, not this model's {prediction}."
        )
    if sampler in ("ddim", "ddpm", "pndm") and _runs_off_the_end(effective, steps):
        raise BadInputError(
            f"Sampler {sampler} has one step less than {steps} with this model (leading "
            f"spacing, steps_offset {effective['steps_offset']}); ask for {steps - 1} steps."
        )


def _check_positions(settings: SamplerSettings, scheduler: Any) -> None:
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
            f"Sampler {settings.sampler} has no {len(timesteps)} different steps with schedule "
            f"{settings.schedule}; ask for fewer steps, or another schedule."
        )


def _runs_off_the_end(effective: Mapping[str, Any], num_inference_steps: int) -> bool:
    """Tell whether leading spacing, shifted by steps_offset, passes the last training timestep."""
    trained = int(effective["num_train_timesteps"])
    last = (num_inference_steps - 1) * (trained // max(1, num_inference_steps)) + int(
        effective["steps_offset"]
    )
    return effective["timestep_spacing"] == "leading" and last >= trained


def _effective_config(settings: SamplerSettings) -> dict[str, Any]:
    """Return the constructor arguments that the sampler's class would get, its own defaults included."""
    config = settings.scheduler_config
    scheduler_class = getattr(diffusers, SAMPLERS[settings.sampler].scheduler_class)
    parameters = inspect.signature(scheduler_class.__init__).parameters
    # diffusers drops what an earlier class had only by default (`ConfigMixin.extract_init_dict`).
    defaulted = config.get("_use_default_values", ())
    given = {k: v for k, v in config.items() if k in parameters and k not in defaulted}
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    return defaults | given | settings.overrides
