"""A job's parameters as a pipeline's own arguments, or refused with what the pipeline cannot take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.inputs import INIT_IMAGE
from storage.parameters import JobParameters
from storage.pipeline_limits import PipelineLimits
from storage.samplers import OWN_SAMPLER, SAMPLERS, SCHEDULE_OPTIONS
from worker.coalescing.pictures import Pictures, picture_arguments
from worker.models.pipeline import guidance_argument

_SIZE = ("width", "height")
_ARGUMENTS = ("eta", "guidance_rescale")  # options that pipelines take by their name
OnStep = Callable[[int, int], None]  # told the number of the step that has ended, and of all


def takes_negative(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Tell whether a negative prompt does something: not where it needs a second scale that jobs lack."""
    if "negative_prompt" not in parameters:
        return False
    return "true_cfg_scale" not in parameters or guidance_argument(parameters) == "true_cfg_scale"


def limits_of(pipeline: Any) -> PipelineLimits:
    """Return what a pipeline can do of what jobs may ask."""
    parameters = inspect.signature(pipeline.__call__).parameters
    scheduler = pipeline.scheduler
    # The flow-matching schedulers list classes that read their config and compute something else.
    compatible = [] if _is_flow(scheduler) else list(getattr(scheduler, "compatibles", []))
    return PipelineLimits(
        pipeline=type(pipeline).__name__,
        scheduler=type(scheduler).__name__,
        samplers=(OWN_SAMPLER, *_names_of(compatible)),
        negative=takes_negative(parameters),
        options=tuple(option for option in _ARGUMENTS if option in parameters),
    )


def call_arguments(
    pipeline: Any, job: JobParameters, *, on_step: OnStep, pictures: Pictures | None = None
) -> dict[str, Any]:
    """Return what to call a pipeline with.

    Args:
        pipeline: the job's own copy.
        job: with no field None.
        on_step: called after each step, where the pipeline can.
        pictures: what the job begins with, in its size; None where only the arguments are to be checked.

    Raises:
        BadInputError: when the pipeline cannot do what the job asks for.
    """
    limits_of(pipeline).check_settings(job)
    parameters = inspect.signature(pipeline.__call__).parameters
    name = type(pipeline).__name__
    arguments: dict[str, Any] = {
        "prompt": job.prompt,
        "num_inference_steps": job.num_inference_steps,
        "width": job.width,
        "height": job.height,
        "generator": torch.Generator("cpu").manual_seed(job.seed),
        "output_type": "np",
    }
    of_pictures = picture_arguments(job, pictures, parameters)
    if INIT_IMAGE in job.options:  # many take its size, which is the job's
        arguments = {name: arguments[name] for name in arguments if name not in _SIZE or name in parameters}
    arguments |= of_pictures
    for argument in arguments:
        if argument not in parameters:
            raise BadInputError(f"{name} takes no {argument}, so its jobs cannot be rendered here.")
    guidance = guidance_argument(parameters)
    if guidance is not None:
        arguments[guidance] = job.guidance_scale
    arguments |= _negative(job, parameters, guidance)
    arguments |= PipelineLimits.asked(job)
    if "callback_on_step_end" in parameters:
        arguments["callback_on_step_end"] = _callback(on_step)
    return arguments


def own_scheduler(pipeline: Any, job: JobParameters) -> Any:
    """Build a job's noise scheduler: the pipeline's own anew, or the job's sampler where it is compatible.

    Raises:
        BadInputError: when the model cannot be rendered with the job's sampler or schedule.
    """
    limits_of(pipeline).check_sampler(job)
    scheduler = pipeline.scheduler
    if job.sampler == OWN_SAMPLER:
        return type(scheduler).from_config(scheduler.config)
    sampler = SAMPLERS[job.sampler or ""]
    wanted = getattr(diffusers, sampler.scheduler_class)
    overrides = dict(sampler.overrides)
    if job.schedule not in (None, "default"):
        overrides |= {option: name == job.schedule for name, option in SCHEDULE_OPTIONS.items()}
    if "noise_sampler_seed" in inspect.signature(wanted.__init__).parameters:
        overrides["noise_sampler_seed"] = job.seed
    return wanted.from_config(scheduler.config, **overrides)


def _negative(
    job: JobParameters, parameters: Mapping[str, inspect.Parameter], guidance: str | None
) -> dict[str, Any]:
    if job.negative_prompt:
        return {"negative_prompt": job.negative_prompt} if takes_negative(parameters) else {}
    # Without any Qwen-Image would not guide at all; a blank one is what its authors write.
    guided = guidance == "true_cfg_scale" and (job.guidance_scale or 0) > 1
    return {"negative_prompt": " "} if guided else {}


def _callback(on_step: OnStep) -> Callable[..., dict[str, Any]]:
    def after_step(pipeline: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, getattr(pipeline, "num_timesteps", 0))
        return {}

    return after_step


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))


def _names_of(classes: list[Any]) -> list[str]:
    names = {found.__name__ for found in classes}
    return [name for name, sampler in SAMPLERS.items() if sampler.scheduler_class in names]
