"""Whether lines, flags and the model's recommendations go together, before anything is written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from producer.jobs import MAX_IMAGES, JobOptions, in_combination, parameters_of, with_setting
from producer.lines import Line
from producer.sweeps import names_of
from storage.errors import BadInputError
from storage.inputs import OF_INPUTS, check_inputs_together, inputs_of
from storage.model_defaults import fill_defaults
from storage.parameters import MAX_SEED, check_job, check_prompt, check_seed
from storage.prompt_syntax import PLAIN
from storage.scheduler_limits import Limits

# What a model's recommendations and limits can clash with; of negative prompts whether there is one.
CLASHING = ("sampler", "schedule", "num_inference_steps", "options")


def check_seeds(
    options: JobOptions, prompts: int, wanted: Iterable[tuple[int, int | None]] = ((0, None),)
) -> None:
    """Check the seeds of flags and sweeps with the most images that a prompt wants which has none of its own.

    Args:
        options: the flags.
        prompts: how many there are.
        wanted: what they want, as `PromptList.wanted` has it.

    Raises:
        BadInputError: if the last job's seed would leave the range, or two pictures would be the same.
    """
    images = max((own or options.images for seeds, own in wanted if not seeds), default=None)
    if images is None:
        return
    swept = sorted({setting["seed"] for setting in options.sweep if "seed" in setting})
    last = max((*options.seeds, *swept), default=0) + images - 1
    if options.seed_per_prompt:
        last += prompts - 1
    if last > MAX_SEED:
        raise BadInputError(f"The last job's seed would be {last}, past {MAX_SEED}; choose a smaller --seed.")
    _check_apart(options.seeds, images)
    _check_apart(swept, images)


def _check_apart(seeds: Iterable[int], images: int) -> None:
    """Image i of seed s has seed s + i, which must be no other image's."""
    ordered = sorted(seeds)
    for one, other in itertools.pairwise(ordered):
        if other - one < images:
            raise BadInputError(
                f"Seeds {one} and {other} with {images} images of each make a picture twice; take seeds that "
                f"are {images} apart."
            )


def clash(
    line: Line,
    options: JobOptions,
    defaults: Mapping[str, Any],
    *,
    model: str,
    limits: Limits | None = None,
) -> str | None:
    """Say why what a line and the flags ask for does not go with a model; None if it does.

    Args:
        line: or what stands for several.
        options: the flags.
        defaults: what the model recommends.
        model: its name.
        limits: what it can do for jobs that begin with no picture: other pipelines render those.
    """
    for setting in options.sweep:
        own = with_setting(parameters_of(line, options), setting)
        if limits is not None and not inputs_of(own.options):
            try:
                limits.check(fill_defaults(own, defaults))
            except BadInputError as error:
                return f"Model {model}: {error}"
        try:
            # Sizes go with everything, and each was checked where it came from.
            check_job(dataclasses.replace(fill_defaults(own, defaults), width=own.width, height=own.height))
        except BadInputError as error:
            sampler = defaults.get("sampler") if own.sampler is None else own.sampler
            return f"With sampler {sampler} and the other settings that model {model} recommends: {error}"
    return None


def check_line(line: Line, options: JobOptions) -> None:
    """Check a line together with the flags; BadInputError about the first thing that does not go."""
    check_prompt(line.prompt)
    if line.images is not None and not 1 <= line.images <= MAX_IMAGES:
        raise BadInputError(f"{line.images} images are out of range; choose 1 to {MAX_IMAGES:,}.")
    for seed in line.seeds:
        last = check_seed(seed) + (line.images or options.images) - 1
        if last > MAX_SEED:
            raise BadInputError(f"The last picture's seed would be {last}, past {MAX_SEED}; take a smaller.")
    if len(line.seeds) > 1:
        _check_apart(line.seeds, line.images or options.images)
    if options.swept:
        own = names_of(line.settings) | ({"seed"} if line.seeds or line.drawn else set())
        if both := sorted(own & options.swept):
            raise BadInputError(
                f"This line sets {', '.join(both)}, and so does a --sweep; leave one of them out."
            )
    # The flags alone were checked once, but not together with the grammar of this prompt.
    weighted = "prompt_syntax" in options.swept or options.options.get("prompt_syntax", PLAIN) != PLAIN
    if line.settings or weighted or (options.swept | options.options.keys()) & OF_INPUTS:
        for setting in options.sweep:
            try:
                job = check_job(with_setting(parameters_of(line, options), setting))
                check_inputs_together(job.options, job.num_inference_steps)
            except BadInputError as error:
                raise in_combination(error, setting) from error


def check_one_model(model: str | None, before: str | None) -> None:
    """Refuse a line that names another model than a line before it."""
    if model is not None and before not in (None, model):
        raise BadInputError(
            f"This line is for model {model!r} and an earlier one for {before!r}; a submission has one "
            f"model: split the list."
        )
