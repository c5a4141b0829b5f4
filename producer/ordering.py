"""What `submit` and `render` do alike: from the flags to prompts that are checked, and on to an order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.fitting import fitting
from producer.inputs import Inputs, check_takes
from producer.jobchecks import check_seeds
from producer.jobs import JobOptions, job_options
from producer.limits import Most
from producer.loras import origin_of_loras
from producer.options import check_submission_flags
from producer.output import remark
from producer.prompts import PromptList, read_prompts
from producer.rewriting import take_rewriting
from producer.submitting import Order

if TYPE_CHECKING:
    from producer.models import KnownModel
    from storage.imagestore import ImageStore
    from storage.settings import Settings

# The flags of `producer.options.prompt_options` and `submission_flags`.
PROMPT_FLAGS = ("files", "texts", "pictures", "input_format", "skip_bad")
SUBMISSION_FLAGS = ("name", "priority", "weight", "max_running", "key", "again", "reuse")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the user asked for, read and checked, as far as that can be without the model.

    Attributes:
        skip_bad: whether lines that do not go with the model are left out.
        share: the flags of the submission itself, by `SUBMISSION_FLAGS`.
        inputs: pictures that the jobs begin with.
    """

    prompts: PromptList
    options: JobOptions
    skip_bad: bool
    share: dict[str, Any]
    inputs: Inputs


def read_asked(
    settings: Settings, flags: dict[str, Any], *, may_name_files: bool = True, most: Most | None = None
) -> Asked:
    """Check the flags, then read and check the prompts.

    Args:
        settings: where things are.
        flags: of the command.
        may_name_files: whether prompts may name pictures by where they are on this machine.
        most: that they may make.

    Raises:
        BadInputError: about the first flag that cannot be used, every place in the lists, or their length.
    """
    flags = dict(flags)
    share = {name: flags.pop(name) for name in SUBMISSION_FLAGS}
    check_submission_flags(**share)
    reading = {name: flags.pop(name) for name in PROMPT_FLAGS}
    rewriting = take_rewriting(settings, flags)
    inputs = Inputs(lambda: _open_images(settings), may_name_files=may_name_files)
    options = inputs.sized(job_options(**inputs.of_flags(flags)))
    files, texts = reading.pop("files"), reading.pop("texts")
    prompts = read_prompts(
        files, texts, options=options, rewriting=rewriting, inputs=inputs, most=most, **reading
    )
    check_seeds(options, prompts.count, prompts.wanted)
    return Asked(prompts=prompts, options=options, skip_bad=reading["skip_bad"], share=share, inputs=inputs)


def _open_images(settings: Settings) -> ImageStore:
    from storage.stores import open_image_store  # noqa: PLC0415  (slow; --help needs none)

    return open_image_store(settings)


def order_of(asked: Asked, model: KnownModel, *, again: bool = False) -> Order:
    """Make the order for a model, whose recommendations have to go with what was asked.

    Args:
        asked: what the user wants.
        model: that renders it.
        again: render it whatever an earlier submission has.

    Raises:
        BadInputError: when they do not; with --skip-bad only if no line is left, or the flags alone do not.
    """
    check_takes(asked.inputs.used, model)
    defaults = model.defaults()
    order = Order(
        prompts=fitting(
            asked.prompts,
            asked.options,
            defaults,
            model=model.name,
            loras=model.loras,
            limits=model.limits,
            skip_bad=asked.skip_bad,
        ),
        options=asked.options,
        model=model.name,
        defaults=defaults,
        inputs=asked.inputs,
        revision=model.revision,
        origin=model.origin + origin_of_loras(asked.prompts, asked.options, model.loras),
        **asked.share | {"again": asked.share["again"] or again},
    )
    if order.reuse and order.draws_seeds:
        remark("Seeds that are drawn make new pictures, so --reuse finds none for them; give --seed.")
    return order
