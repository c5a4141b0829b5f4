"""What a job asks for: the parameters, their defaults and their limits.

Checked once, where the input enters (command line, prompt file); everything behind it may rely on them.
A field that is None is not chosen yet: submit fills in what the model recommends where that is known, else
the claim does (`storage.model_defaults`).

Past 300 lines because what a field means, its default, its limit and its check are read in one place.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from storage.errors import BadInputError
from storage.inputs import CONTROL_SCALE, DEFAULT_CONTROL_SCALE, OF_INPUTS, check_input_option
from storage.loras import check_loras
from storage.prompt_syntax import PLAIN, PROMPT_SYNTAXES, WEIGHTED, parse_weighted
from storage.record import light_record
from storage.samplers import OWN_SAMPLER, SAMPLERS, check_distilled, check_schedule

DEFAULT_SAMPLER = "lms"
DEFAULT_SCHEDULE = "default"
DEFAULT_STEPS = 30
DEFAULT_GUIDANCE = 7.5

PNG, JPEG, WEBP = IMAGE_FORMATS = ("png", "jpeg", "webp")
# What img2dataset and many others take: it is hard to tell from the PNG, which is there for who needs all.
DEFAULT_QUALITY = 95
MIN_QUALITY, MAX_QUALITY = 1, 100
FILE_OPTIONS = frozenset({"image_format", "quality"})  # they concern the file, not what is rendered
_SUFFIXES = {PNG: "png", JPEG: "jpg", WEBP: "webp"}
# What each option is where a job does not say it; said all the same it leaves no trace: equal jobs are equal.
OPTION_DEFAULTS: Mapping[str, Any] = {
    "eta": 0,
    "guidance_rescale": 0,
    "guidance_interval": [0, 1],
    "prompt_syntax": PLAIN,
    "loras": [],
    "image_format": PNG,
    "quality": DEFAULT_QUALITY,  # of a lossy format
    **dict.fromkeys(sorted(OF_INPUTS)),
    CONTROL_SCALE: DEFAULT_CONTROL_SCALE,
}

MAX_PROMPT_LENGTH = 10_000
_SEEDS = random.Random()  # noqa: S311 - no secrets; the system begins it, and is not asked for each
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_SEED = 2**63 - 1
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 2048, 8
MIN_STEPS, MAX_STEPS = 1, 1000
MAX_GUIDANCE = 100.0
_UNIT_PIXELS = 512 * 512  # also assumed where a size is not known yet


@light_record
class JobParameters:
    """One prompt with one seed and its settings: what becomes one picture.

    Attributes:
        prompt: the text, white space stripped.
        negative_prompt: what classifier-free guidance steers away from; "" for none.
        seed: seed of this picture's own CPU generator, 0..2^63-1.
        num_inference_steps: denoising steps, 1..1000.
        guidance_scale: classifier-free guidance, 0..100; no guidance up to 1, as in diffusers.
        width, height: pixels, multiples of 8 in 64..2048.
        sampler, schedule: names from `storage.samplers`.
        options: settings that few jobs have; only those that are not the default: `eta` (0..1), noise that
            DDIM and TCD add; `guidance_rescale` (0..1, https://arxiv.org/abs/2305.08891, section 3.4);
            `guidance_interval` ([A, B], 0 <= A < B <= 1), the fractions of the forward passes between which
            guidance runs (https://arxiv.org/abs/2404.07724), as diffusers' guiders count them;
            `prompt_syntax` (`weighted`: both prompts are in the grammar of `storage.prompt_syntax`);
            `loras` (see `storage.loras`);
            `image_format` (`jpeg`, `webp`) and, of those, `quality` (1..100, as their libraries count it);
            `init_image`, `mask_image`, `control_image`, `strength` and `controlnet_conditioning_scale` of
            `storage.inputs`.
        extra: unknown columns of the prompt file, kept for exports and filters.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int
    num_inference_steps: int | None = DEFAULT_STEPS
    guidance_scale: float | None = DEFAULT_GUIDANCE
    width: int | None = None
    height: int | None = None
    sampler: str | None = DEFAULT_SAMPLER
    schedule: str | None = DEFAULT_SCHEDULE
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def parameters_of(job: JobParameters) -> dict[str, Any]:
    """Return what determined a job's picture, under the names that files use: all but its `extra`."""
    names = (item.name for item in dataclasses.fields(job))
    found = {name: getattr(job, name) for name in names if name != "extra"}
    if job.guidance_scale is not None:
        found["guidance_scale"] = float(job.guidance_scale)  # a recommendation may have come as 4
    return found


def estimate_cost(job: Mapping[Any, Any]) -> float:
    """Estimate what a job costs: UNet evaluations x pixels, in units of one 512 x 512 evaluation.

    Args:
        job: has `num_inference_steps`, `guidance_scale`, `width` and `height`, each of which may be None.
    """
    lanes = 2 if job["guidance_scale"] is None or job["guidance_scale"] > 1 else 1
    pixels = job["width"] * job["height"] if job["width"] and job["height"] else _UNIT_PIXELS
    return float(lanes * (job["num_inference_steps"] or DEFAULT_STEPS) * pixels / _UNIT_PIXELS)


def draw_seed() -> int:
    """Draw a 32-bit seed for a job whose user named none; it is recorded with the job."""
    return _SEEDS.getrandbits(32)


def check_prompt(text: str, *, what: str = "prompt") -> str:
    """Return `text` stripped, or raise BadInputError if it is empty, too long or not storable."""
    stripped = text.strip()
    if not stripped and what == "prompt":
        raise BadInputError("A prompt is empty; give it at least one word.")
    if len(stripped) > MAX_PROMPT_LENGTH:
        raise BadInputError(
            f"A {what} has {len(stripped):,} characters; shorten it to at most {MAX_PROMPT_LENGTH:,}."
        )
    if "\0" in stripped:
        raise BadInputError(f"A {what} holds a NUL character; remove it.")
    if not stripped.isascii() and _SURROGATE.search(stripped):
        raise BadInputError(f"A {what} holds half of a surrogate pair; save it as UTF-8.")
    return stripped


def check_seed(value: int) -> int:
    """Return `value` if it is a seed in 0..2^63-1, else raise BadInputError."""
    if not 0 <= value <= MAX_SEED:
        raise BadInputError(f"Seed {value} is out of range; choose one from 0 to {MAX_SEED}.")
    return value


def check_size(value: int, *, what: str = "width") -> int:
    """Return `value` (pixels) if it is a multiple of 8 in 64..2048, else raise BadInputError."""
    if not MIN_SIZE <= value <= MAX_SIZE or value % SIZE_STEP:
        nearest = min(MAX_SIZE, max(MIN_SIZE, round(value / SIZE_STEP) * SIZE_STEP))
        raise BadInputError(
            f"{what.capitalize()} {value} is not a multiple of {SIZE_STEP} from {MIN_SIZE} to {MAX_SIZE}; "
            f"the nearest is {nearest}."
        )
    return value


def check_steps(value: int) -> int:
    """Return `value` if it is a step count in 1..1000, else raise BadInputError."""
    if not MIN_STEPS <= value <= MAX_STEPS:
        raise BadInputError(f"{value} steps are out of range; choose {MIN_STEPS} to {MAX_STEPS}.")
    return value


def check_guidance(value: float) -> float:
    """Return `value` if it is a guidance scale in 0..100, else raise BadInputError."""
    if not 0 <= value <= MAX_GUIDANCE:  # false for NaN as well
        raise BadInputError(f"Guidance {value} is out of range; choose 0 to {MAX_GUIDANCE:g}.")
    return float(value)


def check_quality(value: int) -> int:
    """Return `value` if it is a quality of JPEG and WebP in 1..100, else raise BadInputError."""
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_QUALITY <= value <= MAX_QUALITY:
        raise BadInputError(
            f"quality {value} is out of range; choose a whole number from {MIN_QUALITY} to {MAX_QUALITY}."
        )
    return value


def read_image_format(text: str) -> str:
    """Return the format of pictures that a text names, also as `jpg`, or raise BadInputError."""
    found = {"jpg": JPEG}.get(text.strip().lower(), text.strip().lower())
    if found not in IMAGE_FORMATS:
        raise BadInputError(f"There is no image format {text!r}; choose one of {', '.join(IMAGE_FORMATS)}.")
    return found


def suffix_of(image_format: str) -> str:
    """Return what the names of a format's files end in, without the dot."""
    return _SUFFIXES.get(image_format.lower(), image_format.lower())


def telling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None or the default, so that equal jobs are equal."""
    told = {
        name: value
        for name, value in options.items()
        if value is not None and (name == "quality" or value != OPTION_DEFAULTS.get(name))
    }
    # With PNG a quality stays, to be refused.
    if "image_format" in told and told.get("quality") == DEFAULT_QUALITY:
        del told["quality"]
    return told


def other_format(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two options ask for different formats, so that a quality of one is not the other's."""
    return bool(one.get("image_format", PNG) != other.get("image_format", PNG))


def overlaid_options(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over others, whose quality was meant for their own format."""
    lost = "image_format" in below and "image_format" in above and other_format(below, above)
    return {name: below[name] for name in below if not (lost and name == "quality")} | dict(above)


def check_options(job: JobParameters) -> None:
    """Check `job.options`, as far as the job's sampler is known.

    Raises:
        BadInputError: for an unknown option, a value out of range, `eta` with a sampler that has none,
            `quality` with a format that has none, or a prompt that is none in the job's syntax.
    """
    for name, value in job.options.items():
        check_input_option(name, value) if name in OF_INPUTS else _check_option(name, value)
    if job.options.get("eta") and job.sampler in SAMPLERS and not SAMPLERS[job.sampler].takes_eta:
        takers = " or ".join(name for name, sampler in SAMPLERS.items() if sampler.takes_eta)
        raise BadInputError(f"Sampler {job.sampler} has no eta; leave it out, or take {takers}.")
    if "quality" in job.options and job.options.get("image_format", PNG) == PNG:
        raise BadInputError(
            "PNG keeps every pixel and has no quality; leave it out, or ask for image format jpeg or webp."
        )
    if job.options.get("prompt_syntax") == WEIGHTED:
        parse_weighted(job.prompt)
        parse_weighted(job.negative_prompt, what="negative prompt")


_OWN_CHECKS: Mapping[str, Callable[[Any], Any]] = {"loras": check_loras, "quality": check_quality}


def _check_option(name: str, value: Any) -> None:
    if name in _OWN_CHECKS:
        _OWN_CHECKS[name](value)
        return
    match name:
        case "eta" | "guidance_rescale":
            if not _is_fraction(value):
                raise BadInputError(f"{name} {value} is out of range; choose a number from 0 to 1.")
        case "guidance_interval":
            if not (
                isinstance(value, list | tuple)
                and len(value) == 2  # noqa: PLR2004 - two ends
                and all(_is_fraction(end) for end in value)
                and value[0] < value[1]
            ):
                raise BadInputError(
                    f"guidance_interval {value} is no interval; give two fractions of the schedule, 0 to 1, "
                    f"the smaller one first."
                )
        case "prompt_syntax":
            if value not in PROMPT_SYNTAXES:
                raise BadInputError(f"There is no prompt syntax {value!r}; choose plain or weighted.")
        case "image_format":
            if value not in IMAGE_FORMATS:
                raise BadInputError(
                    f"There is no image format {value!r}; choose one of {', '.join(IMAGE_FORMATS)}."
                )
        case _:
            raise BadInputError(f"There is no option {name!r}; choose {', '.join(OPTION_DEFAULTS)}.")


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def check_job(job: JobParameters) -> JobParameters:
    """Check every field and every combination that can be judged without the model.

    Raises:
        BadInputError: one sentence about the first thing that is wrong.
    """
    check_prompt(job.prompt)
    check_prompt(job.negative_prompt, what="negative prompt")
    check_seed(job.seed)
    if job.num_inference_steps is not None:
        check_steps(job.num_inference_steps)
    if job.guidance_scale is not None:
        check_guidance(job.guidance_scale)
    if job.width is not None:
        check_size(job.width, what="width")
    if job.height is not None:
        check_size(job.height, what="height")
    if job.sampler is not None:
        if job.sampler not in SAMPLERS and job.sampler != OWN_SAMPLER:
            raise BadInputError(f"There is no sampler {job.sampler!r}; see `promptmill samplers`.")
        if job.schedule is not None:
            check_schedule(job.sampler, job.schedule)
        if job.num_inference_steps is not None:
            check_distilled(job.sampler, job.num_inference_steps)
    check_options(job)
    return job
