"""A job's parameters as a pipeline's own arguments, or refused with what the pipeline cannot take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

from storage.errors import BadInputError
from storage.inputs import INIT_IMAGE, OF_INPUTS
from storage.loras import OPTION as LORAS
from storage.parameters import FILE_OPTIONS, JobParameters
from storage.prompt_syntax import PLAIN
from storage.samplers import OWN_SAMPLER, SAMPLERS, SCHEDULE_OPTIONS
from worker.coalescing.pictures import Pictures, picture_arguments
from worker.models.pipeline import guidance_argument

_SIZE = ("width", "height")
_ELSEWHERE = FILE_OPTIONS | OF_INPUTS | {LORAS}  # options that are no arguments by their name
OnStep = Callable[[int, int], None]  # told the number of the step that has ended, and of all


def takes_negative(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Tell whether a negative prompt does something: not where it needs a second scale that jobs lack."""
    if "negative_prompt" not in parameters:
        return False
    return "true_cfg_scale" not in parameters or guidance_argument(parameters) == "true_cfg_scale"


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
    arguments |= _negative(name, job, parameters, guidance)
    arguments |= _options(name, job, parameters)
    if "callback_on_step_end" in parameters:
        arguments["callback_on_step_end"] = _callback(on_step)
    return arguments


def own_scheduler(pipeline: Any, job: JobParameters) -> Any:
    """Build a job's noise scheduler: the pipeline's own anew, or the job's sampler where it is compatible.

    Raises:
        BadInputError: when the model cannot be rendered with the job's sampler or schedule.
    """
    scheduler = pipeline.scheduler
    if job.sampler == OWN_SAMPLER:
        if job.schedule not in (None, "default"):
            raise BadInputError(
                f"Sampler {OWN_SAMPLER} has no {job.schedule} schedule; leave the schedule out."
            )
        return type(scheduler).from_config(scheduler.config)
    sampler = SAMPLERS[job.sampler or ""]
    wanted = getattr(diffusers, sampler.scheduler_class)
    compatible = list(getattr(scheduler, "compatibles", []))
    # The flow-matching schedulers list classes that read their config and compute something else.
    if wanted not in compatible or _is_flow(scheduler):
        possible = [] if _is_flow(scheduler) else _names_of(compatible)
        raise BadInputError(
            f"{type(pipeline).__name__} with its {type(scheduler).__name__} cannot be rendered with sampler "
            f"{job.sampler}; take {', '.join([OWN_SAMPLER, *possible])}."
        )
    overrides = dict(sampler.overrides)
    if job.schedule not in (None, "default"):
        overrides |= {option: name == job.schedule for name, option in SCHEDULE_OPTIONS.items()}
    if "noise_sampler_seed" in inspect.signature(wanted.__init__).parameters:
        overrides["noise_sampler_seed"] = job.seed
    return wanted.from_config(scheduler.config, **overrides)


def _negative(
    name: str, job: JobParameters, parameters: Mapping[str, inspect.Parameter], guidance: str | None
) -> dict[str, Any]:
    if not job.negative_prompt:
        # Without any Qwen-Image would not guide at all; a blank one is what its authors write.
        guided = guidance == "true_cfg_scale" and (job.guidance_scale or 0) > 1
        return {"negative_prompt": " "} if guided else {}
    if not takes_negative(parameters):
        raise BadInputError(f"{name} takes no negative prompt; leave it out.")
    return {"negative_prompt": job.negative_prompt}


def _options(name: str, job: JobParameters, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    rendered = {option: value for option, value in job.options.items() if option not in _ELSEWHERE}
    options = {option: value for option, value in rendered.items() if value not in (PLAIN, 0, 0.0)}
    for option in options:
        if option not in ("eta", "guidance_rescale") or option not in parameters:
            raise BadInputError(f"{name} takes no {option.replace('_', ' ')}; leave it out.")
    return options


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
