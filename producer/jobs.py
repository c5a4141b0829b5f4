"""From checked prompts and the command's flags to jobs, prompt by prompt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from producer.lines import Line
from storage.errors import BadInputError
from storage.model_defaults import fill_defaults
from storage.parameters import MAX_SEED, JobParameters, check_job, check_prompt, check_seed, draw_seed
from storage.samplers import resolve_sampler

MAX_IMAGES = 100_000
_SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")  # noqa: RUF001  (people do type the multiplication sign)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
    """What the flags say about every job of a submission; a setting that is None is left to the model.

    Attributes:
        seed: of the first image of each prompt; None draws one for every job.
        seed_per_prompt: whether the prompt's number, from 0, is added to the seed.
        images: pictures of each prompt; image i has seed + i.
        width, height: pixels.
        options: see `JobParameters.options`.
    """

    negative_prompt: str = ""
    seed: int | None = None
    seed_per_prompt: bool = False
    images: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    width: int | None = None
    height: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def parameters(self, prompt: str, seed: int) -> JobParameters:
        """Return the parameters of one job."""
        return JobParameters(
            prompt=prompt,
            negative_prompt=self.negative_prompt,
            seed=seed,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            sampler=self.sampler,
            schedule=self.schedule,
            width=self.width,
            height=self.height,
            options=self.options,
        )


def job_options(
    *,
    negative: str,
    seed: int | None,
    seed_per_prompt: bool,
    images: int,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    schedule: str | None,
    size: str | None,
    width: int | None,
    height: int | None,
    eta: float | None,
    guidance_rescale: float | None,
    guidance_interval: str | None,
) -> JobOptions:
    """Check the flags, one by one and together.

    Raises:
        BadInputError: one sentence about the first flag that cannot be used.
    """
    if not 1 <= images <= MAX_IMAGES:
        raise BadInputError(f"--images {images} is out of range; choose 1 to {MAX_IMAGES:,}.")
    if seed_per_prompt and seed is None:
        raise BadInputError("--seed-per-prompt adds to --seed; give --seed as well.")
    if size is not None:
        if width is not None or height is not None:
            raise BadInputError("--size says width and height already; leave --width and --height out.")
        width, height = parse_size(size)
    sampler, named_schedule = resolve_sampler(sampler) if sampler is not None else (None, None)
    if schedule and named_schedule and schedule != named_schedule:
        raise BadInputError(
            f"The sampler's name asks for the {named_schedule} schedule and --schedule for {schedule}; "
            f"leave one out."
        )
    options = JobOptions(
        negative_prompt=check_prompt(negative, what="negative prompt"),
        seed=seed,
        seed_per_prompt=seed_per_prompt,
        images=images,
        num_inference_steps=steps,
        guidance_scale=guidance,
        sampler=sampler,
        schedule=schedule or named_schedule,
        width=width,
        height=height,
        options=_seldom(eta=eta, guidance_rescale=guidance_rescale, guidance_interval=guidance_interval),
    )
    check_job(options.parameters("any", options.seed or 0))
    return options


def parse_size(text: str) -> tuple[int, int]:
    """Read `512x768` as width and height in pixels, or raise BadInputError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInputError(f"--size {text!r} is no size; write WIDTHxHEIGHT, for example 512x512.")
    return int(match[1]), int(match[2])


def parse_interval(text: str) -> list[float]:
    """Read `0.2:0.8` as two fractions, or raise BadInputError."""
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        raise BadInputError(
            f"--guidance-interval {text!r} is no interval; write A:B, for example 0.2:0.8."
        ) from None
    return [first, last]


def _seldom(
    *, eta: float | None, guidance_rescale: float | None, guidance_interval: str | None
) -> dict[str, Any]:
    """Return the options that were given; a default leaves no trace, so that equal jobs are equal."""
    given: dict[str, Any] = {"eta": eta, "guidance_rescale": guidance_rescale}
    if guidance_interval is not None:
        given["guidance_interval"] = parse_interval(guidance_interval)
    return {name: value for name, value in given.items() if not _idle(value)}


def _idle(value: Any) -> bool:
    """Whether an option's value is its default: no noise, no rescaling, guidance from begin to end."""
    return value in (None, 0, [0, 1])


def check_seeds(options: JobOptions, prompts: int) -> None:
    """Raise BadInputError if the last job's seed would leave the range."""
    if options.seed is None:
        return
    last = options.seed + (prompts - 1 if options.seed_per_prompt else 0) + options.images - 1
    if last > MAX_SEED:
        raise BadInputError(f"The last job's seed would be {last}, past {MAX_SEED}; choose a smaller --seed.")


def check_filled(options: JobOptions, defaults: Mapping[str, Any], *, model: str) -> None:
    """Raise BadInputError if what the flags say does not go with what the model's `defaults` fill in."""
    own = options.parameters("any", options.seed or 0)
    try:
        # Sizes go with everything, and each was checked where it came from.
        check_job(dataclasses.replace(fill_defaults(own, defaults), width=own.width, height=own.height))
    except BadInputError as error:
        sampler = defaults.get("sampler") if own.sampler is None else own.sampler
        raise BadInputError(
            f"With sampler {sampler} and the other settings that model {model} recommends: {error}"
        ) from error


def build_jobs(
    lines: Iterable[Line], options: JobOptions, defaults: Mapping[str, Any]
) -> Iterator[JobParameters]:
    """Yield the jobs, all images of a prompt before the next prompt's; memory stays flat.

    What neither a line nor the flags say comes from the model's `defaults`, as far as they are known; the
    rest stays None.
    """
    for number, line in enumerate(lines):
        for seed in _seeds(line, number, options):
            yield fill_defaults(_parameters(line, options, seed), defaults)


def count_jobs(wanted: Mapping[tuple[int, int | None], int], options: JobOptions) -> int:
    """How many jobs `build_jobs` makes of prompts that want these seeds and images (`PromptList.wanted`)."""
    return sum(
        prompts * max(1, seeds) * (images or options.images) for (seeds, images), prompts in wanted.items()
    )


def check_line(line: Line, options: JobOptions) -> None:
    """Check a line together with the flags; BadInputError about the first thing that does not go."""
    check_prompt(line.prompt)
    if line.images is not None and not 1 <= line.images <= MAX_IMAGES:
        raise BadInputError(f"{line.images} images are out of range; choose 1 to {MAX_IMAGES:,}.")
    for seed in line.seeds:
        last = check_seed(seed) + (line.images or options.images) - 1
        if last > MAX_SEED:
            raise BadInputError(f"The last picture's seed would be {last}, past {MAX_SEED}; take a smaller.")
    if line.settings:  # the flags alone were checked once
        check_job(_parameters(line, options, 0))


def _parameters(line: Line, options: JobOptions, seed: int) -> JobParameters:
    job = options.parameters(line.prompt, seed)
    if not line.settings and not line.extra:
        return job
    both = options.options | line.settings.get("options", {})
    own = {**line.settings, "options": {name: value for name, value in both.items() if not _idle(value)}}
    return dataclasses.replace(job, **own, extra=line.extra)


def _seeds(line: Line, number: int, options: JobOptions) -> Iterator[int]:
    """Yield the seed of each picture of a line, which is prompt `number` of the list."""
    images = line.images or options.images
    firsts = line.seeds
    if not firsts and options.seed is not None:
        firsts = (options.seed + (number if options.seed_per_prompt else 0),)
    if not firsts:
        yield from (draw_seed() for _ in range(images))
    for first in firsts:
        yield from range(first, first + images)


def settings_of(parameters: JobParameters) -> dict[str, Any]:
    """Return what a job was asked for besides its prompt, under the names that `show` and exports use."""
    return {
        "negative_prompt": parameters.negative_prompt,
        "seed": parameters.seed,
        "num_inference_steps": parameters.num_inference_steps,
        "guidance_scale": parameters.guidance_scale,
        "width": parameters.width,
        "height": parameters.height,
        "sampler": parameters.sampler,
        "schedule": parameters.schedule,
    }
