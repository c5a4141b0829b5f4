"""A sampler at work: one request's diffusers noise scheduler, called as StableDiffusionPipeline calls it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.parameters import MAX_DISTILLED_STEPS
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS, check_schedule

LMS_ORDER = 4  # the default of `LMSDiscreteScheduler.step`, which the pipeline leaves as it is


class NoiseSchedule:
    """One request's noise scheduler, and its position in it.

    It lives on the CPU whatever the device: its tables are read as scalars, and scalars on the CPU mix with
    tensors on any device without a synchronisation.

    Attributes:
        timesteps: the UNet's timestep of every forward pass, float32 exact.
        init_noise_sigma: what initial noise is multiplied with.
    """

    def __init__(
        self,
        *,
        sampler: str,
        schedule: str,
        num_inference_steps: int,
        scheduler_config: Mapping[str, Any],
        seed: int,
        generator: torch.Generator,
    ) -> None:
        """Build and position the noise scheduler.

        Args:
            sampler: a name from `storage.samplers`.
            schedule: likewise.
            num_inference_steps: 1 to 1000.
            scheduler_config: the model's, after the pipeline's own fix-ups (`LoadedModel.scheduler_config`).
            seed: the job's; the Brownian tree of DPM++ SDE is seeded with it.
            generator: the job's CPU generator; noise during the loop is drawn from it.

        Raises:
            BadInputError: when the combination cannot be rendered; one sentence says why.
        """
        check_combination(sampler, schedule, num_inference_steps, scheduler_config)
        try:
            self._scheduler = build_scheduler(sampler, schedule, scheduler_config, seed=seed)
            self._scheduler.set_timesteps(num_inference_steps)
        except (ValueError, NotImplementedError, IndexError, AssertionError, ZeroDivisionError) as error:
            raise BadInputError(
                f"Sampler {sampler} cannot do {num_inference_steps} steps of schedule {schedule} with this "
                f"model's noise scheduler config ({error}); take other steps or another sampler."
            ) from error
        _check_positions(sampler, schedule, self._scheduler)
        if isinstance(self._scheduler, diffusers.LMSDiscreteScheduler):
            _integrate_ahead(self._scheduler)
        self._extra = _extra_step_arguments(self._scheduler, generator)
        self._timesteps: list[torch.Tensor] = list(self._scheduler.timesteps)
        self.timesteps: list[float] = [float(t) for t in self._timesteps]
        self.init_noise_sigma: torch.Tensor | float = self._scheduler.init_noise_sigma

    def __len__(self) -> int:
        """Count the forward passes; Heun, DPM2 and DPM++ SDE need two for most steps."""
        return len(self._timesteps)

    def scale_input(self, latents: torch.Tensor, evaluation: int) -> torch.Tensor:
        """Return the UNet's input for forward pass number `evaluation`, same shape as `latents`."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self._timesteps[evaluation])
        return scaled

    def step(self, noise_pred: torch.Tensor, evaluation: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents after forward pass number `evaluation`, which predicted `noise_pred`."""
        stepped: torch.Tensor = self._scheduler.step(
            noise_pred, self._timesteps[evaluation], latents, **self._extra, return_dict=False
        )[0]
        return stepped


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


def _integrate_ahead(scheduler: Any) -> None:
    """Compute the coefficients of LMS now, and once for all requests with these sigmas.

    `step` would integrate up to four of them numerically, 4 ms a step, in the thread that owns the device.
    """
    table = _lms_coefficients(tuple(scheduler.sigmas.tolist()))
    for position in range(len(scheduler.timesteps)):
        order = min(position + 1, LMS_ORDER)
        for key in ((order, position, current) for current in range(order)):
            if key not in table:
                table[key] = scheduler.get_lms_coefficient(*key)
    scheduler.get_lms_coefficient = lambda order, position, current: table[order, position, current]


@functools.lru_cache(maxsize=64)
def _lms_coefficients(sigmas: tuple[float, ...]) -> dict[tuple[int, int, int], float]:  # noqa: ARG001 - the key
    """Return the table of coefficients that belongs to `sigmas`, empty at first.

    Two threads may fill one at the same time; they write the same numbers.
    """
    return {}


def _extra_step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Return what `StableDiffusionPipeline.prepare_extra_step_kwargs` passes to `step`, with its eta of 0."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": 0.0, "generator": generator}
    return {name: value for name, value in offered.items() if name in accepted}
