"""From checked prompts and the command's flags to jobs, prompt by prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from producer.lines import Line
from producer.sweeps import Setting, combine, names_of, parse_axis, parse_interval, parse_seeds, parse_size
from storage.errors import BadInputError
from storage.inputs import INIT_IMAGE, with_strength
from storage.loras import lora_list, parse_lora
from storage.model_defaults import fill_defaults
from storage.parameters import (
    JobParameters,
    check_job,
    check_prompt,
    draw_seed,
    overlaid_options,
    telling,
)
from storage.samplers import resolve_sampler

MAX_IMAGES = 100_000
_SHARED = tuple(
    item.name for item in dataclasses.fields(JobParameters) if item.name not in {"prompt", "seed"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
    """What the flags say about every job of a submission; a setting that is None is left to the model.

    Attributes:
        seeds: each prompt is rendered with each of them; empty draws one for every picture of a prompt.
        seed_per_prompt: whether the prompt's number, from 0, is added to the seeds.
        images: pictures of each seed; image i has seed + i.
        sweep: what each combination of the sweeps sets; a prompt is rendered with each, on the same seeds.
        said: the seldom options that were given, also where that is their default.
        swept: all that the sweeps set.
        width, height: pixels.
        options: see `JobParameters.options`.
    """

    negative_prompt: str = ""
    seeds: tuple[int, ...] = ()
    seed_per_prompt: bool = False
    images: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    width: int | None = None
    height: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sweep: tuple[Setting, ...] = ({},)
    said: frozenset[str] = frozenset()
    swept: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        swept = frozenset(name for setting in self.sweep for name in names_of(setting))
        object.__setattr__(self, "swept", swept)

    def parameters(self, prompt: str, seed: int) -> JobParameters:
        """Return the parameters of one job, as far as the flags say them, sweeps apart."""
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
    seed: str | None,
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
    prompt_syntax: str | None,
    loras: Sequence[str] = (),
    image_format: str | None,
    quality: int | None,
    init_image: str | None = None,
    mask_image: str | None = None,
    control_image: str | None = None,
    strength: float | None = None,
    controlnet_conditioning_scale: float | None = None,
    sweep: Sequence[str] = (),
    zipped: bool = False,
) -> JobOptions:
    """Check the flags, one by one and together; of inputs they have the hashes.

    Raises:
        BadInputError: one sentence about the first flag that cannot be used.
    """
    if not 1 <= images <= MAX_IMAGES:
        raise BadInputError(f"--images {images} is out of range; choose 1 to {MAX_IMAGES:,}.")
    if seed_per_prompt and not (seed is not None and parse_seeds(seed)):
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
    if zipped and not sweep:
        raise BadInputError("--zip pairs the values of several --sweep; give them as well.")
    seldom = {
        "eta": eta,
        "guidance_rescale": guidance_rescale,
        "guidance_interval": guidance_interval,
        "prompt_syntax": prompt_syntax,
        "loras": lora_list(map(parse_lora, loras)) if loras else None,
        "image_format": image_format,
        "quality": quality,
        "init_image": init_image,
        "mask_image": mask_image,
        "control_image": control_image,
        "strength": strength,
        "controlnet_conditioning_scale": controlnet_conditioning_scale,
    }
    options = JobOptions(
        negative_prompt=check_prompt(negative, what="negative prompt"),
        seeds=parse_seeds(seed) if seed is not None else (),
        seed_per_prompt=seed_per_prompt,
        images=images,
        num_inference_steps=steps,
        guidance_scale=guidance,
        sampler=sampler,
        schedule=schedule or named_schedule,
        width=width,
        height=height,
        options=_seldom(seldom),
        said=frozenset(name for name, value in seldom.items() if value is not None),
        sweep=combine([parse_axis(text) for text in sweep], zipped=zipped),
    )
    _check_sweep(options)
    return options


def _check_sweep(options: JobOptions) -> None:
    """Check the flags with each combination of the sweeps; BadInputError about the first that does not go."""
    flags = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    given = {name for name, value in flags.items() if value is not None and value not in ("", (), {})}
    given |= options.said | ({"seed"} if options.seeds else set())
    if both := sorted(given & options.swept):
        raise BadInputError(f"A --sweep sets {', '.join(both)}, and so does a flag; leave one of them out.")
    for setting in options.sweep:
        try:
            check_job(with_setting(options.parameters("any", 0), setting))
        except BadInputError as error:
            raise in_combination(error, setting) from error


def in_combination(error: BadInputError, setting: Setting) -> BadInputError:
    """Say in which combination of the sweeps an error is."""
    if not setting:
        return error
    shown = ", ".join(f"{name} {value}" for name, value in setting.items())
    return BadInputError(f"With {shown} of --sweep: {error}")


def with_setting(job: JobParameters, setting: Setting) -> JobParameters:
    """Return the job with what one combination of the sweeps sets, its seed apart."""
    own = {name: value for name, value in setting.items() if name != "seed"}
    if "options" in own or INIT_IMAGE in job.options:
        own["options"] = with_strength(telling(job.options | own.get("options", {})))
    return dataclasses.replace(job, **own) if own else job


def _seldom(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given; a default leaves no trace, so that equal jobs are equal."""
    interval = given["guidance_interval"]
    return telling({**given, "guidance_interval": None if interval is None else parse_interval(interval)})


def build_jobs(
    lines: Iterable[Line], options: JobOptions, defaults: Mapping[str, Any]
) -> Iterator[JobParameters]:
    """Yield the jobs, all pictures of a prompt before the next prompt's; memory stays flat.

    Within a prompt the combinations of the sweeps follow each other, in each the seeds, for each the images.

    What neither a line nor the flags say comes from the model's `defaults`, as far as they are known; the
    rest stays None.
    """
    # A line that sets nothing itself differs from the next in prompt and seed alone.
    plain = _all_settings(options.parameters("", 0), options, defaults)
    for number, line in enumerate(lines):
        seeds = _seeds(line, number, options)
        own = line.settings or line.extra
        for setting, settings in (
            _all_settings(parameters_of(line, options), options, defaults) if own else plain
        ):
            for seed in _swept_seeds(setting, line, options) or seeds:
                yield JobParameters(prompt=line.prompt, seed=seed, **settings)


def count_jobs(wanted: Mapping[tuple[int, int | None], int], options: JobOptions) -> int:
    """How many jobs `build_jobs` makes of prompts that want these seeds and images (`PromptList.wanted`)."""
    firsts = 1 if "seed" in options.swept else max(1, len(options.seeds))
    return len(options.sweep) * sum(
        prompts * (seeds or firsts) * (images or options.images)
        for (seeds, images), prompts in wanted.items()
    )


def _all_settings(
    job: JobParameters, options: JobOptions, defaults: Mapping[str, Any]
) -> list[tuple[Setting, dict[str, Any]]]:
    """Return each combination of the sweeps, with all that its jobs have in common but prompt and seed."""
    filled = [(setting, fill_defaults(with_setting(job, setting), defaults)) for setting in options.sweep]
    return [(setting, {name: getattr(made, name) for name in _SHARED}) for setting, made in filled]


def parameters_of(line: Line, options: JobOptions) -> JobParameters:
    """Return what a line and the flags ask for together, seeds and sweeps apart; the line's settings win."""
    job = options.parameters(line.prompt, 0)
    if not line.settings and not line.extra:
        return job
    said = line.settings.get("options", {})
    own = {**line.settings, "options": telling(overlaid_options(options.options, said))}
    if options.sampler is not None and line.settings.get("sampler", options.sampler) != options.sampler:
        own.setdefault("schedule", None)  # the flags' schedule was meant for their sampler
    return dataclasses.replace(job, **own, extra=line.extra)


def first_seeds(line: Line, number: int, options: JobOptions) -> Sequence[int]:
    """Return the seeds that line and flags name, of each first image; none where they are drawn."""
    if line.drawn:
        return ()
    added = number if options.seed_per_prompt else 0
    return line.seeds or [seed + added for seed in options.seeds]


def _seeds(line: Line, number: int, options: JobOptions) -> list[int]:
    """Return the seed of each picture of a line, which is prompt `number` of the list, sweeps apart."""
    images = line.images or options.images
    firsts = first_seeds(line, number, options)
    if not firsts:
        return [draw_seed() for _ in range(images)]
    return [first + image for first in firsts for image in range(images)]


def _swept_seeds(setting: Setting, line: Line, options: JobOptions) -> range:
    """Return the seeds of a combination that sets one; none where it does not."""
    first = setting.get("seed")
    return range(0) if first is None else range(first, first + (line.images or options.images))


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
