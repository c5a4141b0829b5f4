"""A sampler's noise scheduler, built and called as StableDiffusionPipeline does, or refused with a reason."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS, check_schedule
from storage.scheduler_limits import check_combination


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
        check_schedule(self.sampler, self.schedule)
        check_combination(self.sampler, self.num_inference_steps, self.scheduler_config)
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
