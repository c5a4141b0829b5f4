"""What samplers can do with a model's noise scheduler config: worker and submit refuse alike.

In the rebuilt loop (`storage.model_families`) a sampler's noise scheduler is built of the model's config. A
worker publishes what of it is read here, and submits hold to it. What only diffusers' own code knows, such as
how many different steps a spacing has, is left to the worker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from storage.errors import BadInputError
from storage.parameters import JobParameters, check_options
from storage.pipeline_limits import PipelineLimits
from storage.samplers import OWN_SAMPLER, SAMPLERS, check_distilled, check_schedule

_DEFAULTED = "_use_default_values"  # where diffusers lists what a config has only by its class's default
# What is read here, and what it has to be; samplers' overrides besides, which tell the model's own sampler.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "_class_name": (str,),
    _DEFAULTED: (list, tuple),
    "num_train_timesteps": (int,),
    "prediction_type": (str,),
    "rescale_betas_zero_snr": (bool, NoneType),
    "steps_offset": (int,),
    "timestep_spacing": (str,),
    "variance_type": (str, NoneType),
}
# What the classes of the samplers take of it, and which predictions their `step` knows;
# `tests/reference/test_sampler_table.py` holds this against diffusers.
_TAKES_VARIANCE = (
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
)
_TAKES_ZERO_SNR = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_NOISE = ("epsilon", "v_prediction")
_NOISE_OR_SAMPLE = (*_NOISE, "sample")
_ALSO_FLOW = (*_NOISE_OR_SAMPLE, "flow_prediction")
_PREDICTIONS = {
    "DEISMultistepScheduler": _ALSO_FLOW,
    "DPMSolverMultistepScheduler": _ALSO_FLOW,
    "DPMSolverSDEScheduler": _NOISE,
    "DPMSolverSinglestepScheduler": _ALSO_FLOW,
    "EulerAncestralDiscreteScheduler": _NOISE,
    "EulerDiscreteScheduler": (*_NOISE_OR_SAMPLE, "original_sample"),
    "IPNDMScheduler": ("epsilon",),  # it takes no `prediction_type`
    "KDPM2AncestralDiscreteScheduler": _NOISE,
    "KDPM2DiscreteScheduler": _NOISE,
    "PNDMScheduler": _NOISE,
    "SASolverScheduler": _ALSO_FLOW,
    "UniPCMultistepScheduler": _ALSO_FLOW,
}
_READ = sorted({*_KINDS, *(key for sampler in SAMPLERS.values() for key in sampler.overrides)})


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """What a model's noise scheduler config lets its jobs ask for.

    Attributes:
        scheduler_config: of the model's, what is read here.
    """

    scheduler_config: Mapping[str, Any]

    @classmethod
    def of(cls, scheduler_config: Mapping[str, Any]) -> SchedulerLimits:
        """Keep what submits need of a model's config (`LoadedModel.scheduler_config`), for JSON."""
        kept = {key: scheduler_config[key] for key in _READ if key in scheduler_config}
        defaulted = scheduler_config.get(_DEFAULTED, ())
        return cls(scheduler_config=kept | {_DEFAULTED: [key for key in _READ if key in defaulted]})

    @classmethod
    def read(cls, said: Any) -> SchedulerLimits | None:
        """Return what a worker has said; None where it has not, or says it as another version does."""
        match said:
            case {"scheduler_config": dict(config)}:
                if all(isinstance(config[key], kinds) for key, kinds in _KINDS.items() if key in config):
                    return cls(scheduler_config=config)
        return None

    def check(self, job: JobParameters) -> None:
        """Check a job, as far as it is filled in.

        Raises:
            BadInputError: when its sampler cannot do with this model what it asks for.
        """
        if job.sampler == OWN_SAMPLER:
            job = with_own_sampler(job, self.scheduler_config)
            check_options(job)
        if job.sampler in SAMPLERS:  # of another, which a newer worker recommends, `check_job` says so
            check_combination(job.sampler, job.num_inference_steps, self.scheduler_config)


Limits = PipelineLimits | SchedulerLimits


def read_limits(said: Any) -> Limits | None:
    """Return what a worker has said its model can do, whichever way it is rendered; None where it has not."""
    return PipelineLimits.read(said) or SchedulerLimits.read(said)


def with_own_sampler(job: JobParameters, scheduler_config: Mapping[str, Any]) -> JobParameters:
    """Return a job for sampler `default` with the name of the sampler that its model's noise scheduler is.

    Args:
        job: with sampler `default`.
        scheduler_config: the model's, with its class.

    Raises:
        BadInputError: when it is none of ours, or the job names a schedule.
    """
    if job.schedule is not None:
        check_schedule(OWN_SAMPLER, job.schedule)
    name = scheduler_config.get("_class_name")
    for sampler in SAMPLERS.values():
        wanted = sampler.overrides.items()
        if sampler.scheduler_class == name and all(
            scheduler_config.get(key) == value for key, value in wanted
        ):
            return dataclasses.replace(job, sampler=sampler.name)
    raise BadInputError(
        f"This model's own noise scheduler ({name}) is none that sampler {OWN_SAMPLER} could stand for; name "
        f"a sampler (see `promptmill samplers`)."
    )


def check_combination(
    sampler: str, num_inference_steps: int | None, scheduler_config: Mapping[str, Any]
) -> None:
    """Refuse what diffusers would crash on or render as garbage.

    Args:
        sampler: one of SAMPLERS.
        num_inference_steps: 1 to 1000; None where they are not known yet.
        scheduler_config: the model's, or what `SchedulerLimits.of` keeps of it.

    Raises:
        BadInputError: one sentence that names the sampler and says what to do.
    """
    if num_inference_steps is not None:
        check_distilled(sampler, num_inference_steps)
    _check_model(sampler, scheduler_config)
    if num_inference_steps is not None and sampler in ("ddim", "ddpm", "pndm"):
        _check_last_step(sampler, num_inference_steps, scheduler_config)


def _check_model(sampler: str, scheduler_config: Mapping[str, Any]) -> None:
    """Refuse a model that a sampler cannot serve with any number of steps."""
    scheduler_class = SAMPLERS[sampler].scheduler_class
    variance = _given(scheduler_config, "variance_type")
    if scheduler_class in _TAKES_VARIANCE and str(variance).startswith("learned"):
        raise BadInputError(
            f"This model predicts its variance ({variance}), which sampler {sampler} does not support here; "
            f"take another sampler."
        )
    prediction = _given(scheduler_config, "prediction_type", "epsilon")
    zero_snr = scheduler_class in _TAKES_ZERO_SNR and _given(scheduler_config, "rescale_betas_zero_snr")
    if zero_snr and prediction == "epsilon":
        raise BadInputError(
            f"This model's noise scheduler config combines zero terminal SNR with epsilon prediction, which "
            f"sampler {sampler} cannot start from; take a sampler that ignores it, e.g. lms."
        )
    predictions = _PREDICTIONS.get(scheduler_class, _NOISE_OR_SAMPLE)
    if prediction not in predictions:
        raise BadInputError(
            f"Sampler {sampler} knows prediction type {' and '.join(predictions)} only, not this "
            f"model's {prediction}; take another sampler."
        )


def _check_last_step(sampler: str, num_inference_steps: int, scheduler_config: Mapping[str, Any]) -> None:
    """Refuse leading spacing, these samplers' default, that steps_offset shifts past the last timestep."""
    trained = int(_given(scheduler_config, "num_train_timesteps", 1000))
    offset = int(_given(scheduler_config, "steps_offset", 0))
    last = (num_inference_steps - 1) * (trained // max(1, num_inference_steps)) + offset
    if _given(scheduler_config, "timestep_spacing", "leading") == "leading" and last >= trained:
        raise BadInputError(
            f"Sampler {sampler} has one step less than {num_inference_steps} with this model (leading "
            f"spacing, steps_offset {offset}); ask for {num_inference_steps - 1} steps."
        )


def _given(scheduler_config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return what the sampler's class gets for a key that it takes.

    diffusers drops what an earlier class had only by default (`ConfigMixin.extract_init_dict`).
    """
    dropped = key not in scheduler_config or key in scheduler_config.get(_DEFAULTED, ())
    return default if dropped else scheduler_config[key]
