"""What a pipeline that is run as it is can do of what jobs may ask: its worker says it, submits hold to it.

What the rebuilt loop of Stable Diffusion can do is in `storage.scheduler_limits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.errors import BadInputError
from storage.inputs import OF_INPUTS
from storage.loras import OPTION as LORAS
from storage.parameters import DEFAULT_SCHEDULE, FILE_OPTIONS, JobParameters
from storage.prompt_syntax import PLAIN
from storage.samplers import OWN_SAMPLER

LIMITS = "limits"  # what they are called among a worker's defaults
_ELSEWHERE = FILE_OPTIONS | OF_INPUTS | {LORAS}  # options that are no arguments by their name
_NOTHING = (PLAIN, 0, 0.0)  # values that leave everything as it is


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineLimits:
    """What one model's pipeline can do.

    Attributes:
        pipeline: its class.
        scheduler: the class of its noise scheduler.
        samplers: those that its jobs may name.
        negative: whether a negative prompt has an effect.
        options: of `JobParameters.options`, those that it takes as they are.
    """

    pipeline: str
    scheduler: str
    samplers: tuple[str, ...]
    negative: bool
    options: tuple[str, ...]

    @classmethod
    def read(cls, said: Any) -> PipelineLimits | None:
        """Return what a worker has said; None where it has not, or says it as another version does."""
        match said:
            case {
                "pipeline": str(pipeline),
                "scheduler": str(scheduler),
                "samplers": list(samplers) | tuple(samplers),
                "negative": bool(negative),
                "options": list(options) | tuple(options),
            }:
                return cls(
                    pipeline=pipeline,
                    scheduler=scheduler,
                    samplers=tuple(map(str, samplers)),
                    negative=negative,
                    options=tuple(map(str, options)),
                )
        return None

    def check(self, job: JobParameters) -> None:
        """Check a job, as far as it is filled in.

        Raises:
            BadInputError: when the pipeline cannot do what it asks for.
        """
        self.check_sampler(job)
        self.check_settings(job)

    def check_sampler(self, job: JobParameters) -> None:
        """Check a job's sampler and schedule; see `check`."""
        if job.sampler not in (None, *self.samplers):
            raise BadInputError(
                f"{self.pipeline} with its {self.scheduler} cannot be rendered with sampler {job.sampler}; "
                f"take {', '.join(self.samplers)}."
            )
        if job.sampler == OWN_SAMPLER and job.schedule not in (None, DEFAULT_SCHEDULE):
            raise BadInputError(
                f"Sampler {OWN_SAMPLER} has no {job.schedule} schedule; leave the schedule out."
            )

    def check_settings(self, job: JobParameters) -> None:
        """Check what else a job asks for; see `check`."""
        if job.negative_prompt and not self.negative:
            raise BadInputError(f"{self.pipeline} takes no negative prompt; leave it out.")
        for option in self.asked(job):
            if option not in self.options:
                raise BadInputError(f"{self.pipeline} takes no {option.replace('_', ' ')}; leave it out.")

    @staticmethod
    def asked(job: JobParameters) -> dict[str, Any]:
        """Return the options of a job that its pipeline would have to know."""
        rendered = {option: value for option, value in job.options.items() if option not in _ELSEWHERE}
        return {option: value for option, value in rendered.items() if value not in _NOTHING}
