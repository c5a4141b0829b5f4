"""The options that commands share, each declared once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from producer.readers import FORMATS
from producer.session import Session
from producer.sweeps import SHOWN_NAMES
from storage.errors import BadInputError, PromptmillError
from storage.parameters import (
    DEFAULT_GUIDANCE,
    DEFAULT_QUALITY,
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    IMAGE_FORMATS,
)
from storage.prompt_syntax import PROMPT_SYNTAXES
from storage.samplers import OWN_SAMPLER, SAMPLERS, SCHEDULES

F = TypeVar("F", bound=Callable[..., Any])
LAST = "@last"
MAX_KEY_LENGTH = 200
_NAME = re.compile(r"\w[\w .+=-]{0,99}")


class SubmissionReference(click.ParamType[str]):
    """An id, a unique beginning of one, a name or `@last`; completed from the newest submissions."""

    name = "id"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  (click's signature)
        param: click.Parameter,  # noqa: ARG002  (likewise)
        incomplete: str,
    ) -> list[CompletionItem]:
        """Offer ids with their names; nothing where the database cannot be read."""
        session = Session()
        try:
            # Pressing Tab must not make a database.
            newest = session.jobs.submissions(limit=50) if session.settings.home.exists() else []
        except PromptmillError:
            return []
        finally:
            session.close()
        words = {LAST: "the newest"} | {item.id: item.name or item.source for item in newest}
        words |= {item.name: item.id for item in newest if item.name}
        return [
            CompletionItem(word, help=text) for word, text in words.items() if word.startswith(incomplete)
        ]


def stacked(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Apply decorators so that `--help` lists them in the order given."""
    return lambda function: reduce(lambda inner, option: option(inner), reversed(options), function)


submission_argument = click.argument("submission", metavar="ID", type=SubmissionReference())

prompt_options = stacked(
    click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path()),
    click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt; repeatable."),
    click.option(
        "--from-image",
        "pictures",
        multiple=True,
        type=click.Path(),
        metavar="FILE",
        help="Prompt, seed and settings of a picture, ours or another program's; flags beat them.",
    ),
    click.option(
        "--input-format",
        type=click.Choice(FORMATS),
        help="Of every FILE; text knows kohya's and A1111's options too. Default: seen from the content.",
    ),
    click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be used, with a warning."),
)

rewriting_flags = stacked(
    click.option(
        "--style", "styles", multiple=True, metavar="NAME",
        help="Words and settings around each prompt, from the file of presets; repeatable, the first is "
        "innermost.",
    ),
    click.option(
        "--preset", "presets", multiple=True, metavar="NAME",
        help="Settings from the file of presets; a flag and a line's own setting beat them. Repeatable.",
    ),
    click.option(
        "--presets", "presets_file", type=click.Path(path_type=Path), metavar="FILE",
        help="TOML file of styles and presets. Default: presets.toml here, else in PROMPTMILL_HOME.",
    ),
    click.option(
        "--templates", type=click.Choice(["off", "random", "all"]), default="off", show_default=True,
        help="What becomes of {red|blue} and __animal__: nothing; one drawn for each picture; all of them.",
    ),
    click.option(
        "--wildcards", type=click.Path(path_type=Path), metavar="DIR",
        help="Where __animal__ finds animal.txt, one option a line.",
    ),
    click.option(
        "--template-seed", type=int, metavar="N",
        help="Draw the same prompts again. Default: random, kept with each job.",
    ),
)  # fmt: skip

job_flags = stacked(
    click.option("--negative", default="", metavar="TEXT", help="Negative prompt of every job."),
    click.option(
        "--images",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="Pictures of each prompt, or of each of its seeds.",
    ),
    click.option(
        "--seed",
        metavar="N|1,2,3|1..8|random",
        help="Seed of each prompt's first picture; each next one adds 1. Several: each prompt with each. "
        "Default: random, drawn for each picture and kept with it.",
    ),
    click.option("--seed-per-prompt", is_flag=True, help="Add the prompt's number, from 0, to --seed."),
    click.option(
        "--sweep",
        multiple=True,
        metavar="NAME=VALUES",
        help="Render each prompt with each of these values, on the same seeds: guidance=3,5,7.5 or "
        "steps=10..50:10. Repeatable: all combinations. NAME: " + ", ".join(SHOWN_NAMES) + ".",
    ),
    click.option(
        "--zip",
        "zipped",
        is_flag=True,
        help="Pair the first values of all --sweep, the second ones and so on, instead of all with all.",
    ),
    click.option(
        "--steps", type=int, metavar="N", help=f"1 to 1000. Default: the model's, else {DEFAULT_STEPS}."
    ),
    click.option(
        "--guidance",
        "--cfg",
        type=float,
        metavar="X",
        help=f"Guidance scale, 0 to 100; up to 1 means none. Default: the model's, else {DEFAULT_GUIDANCE}.",
    ),
    click.option(
        "--sampler",
        metavar="NAME",
        shell_complete=lambda _ctx, _param, text: [
            name for name in (*SAMPLERS, OWN_SAMPLER) if name.startswith(text)
        ],
        help='A name from `promptmill samplers`, or A1111\'s, like "DPM++ 2M Karras"; "default" is the '
        "model's own. "
        f"Default: the model's, else {DEFAULT_SAMPLER}.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(list(SCHEDULES)),
        help="Spacing of the sampler's sigmas. Default: the model's for its own sampler, else default.",
    ),
    click.option(
        "--size", metavar="WxH", help="Pixels, multiples of 8 from 64 to 2048. Default: the model's."
    ),
    click.option("--width", type=int, metavar="N", help="Pixels."),
    click.option("--height", type=int, metavar="N", help="Pixels."),
    click.option("--eta", type=float, metavar="X", help="Noise that ddim and tcd add, 0 to 1. Default: 0."),
    click.option(
        "--guidance-rescale",
        type=float,
        metavar="X",
        help="0 to 1: pull the guided prediction's contrast back to the unguided one's. Default: 0.",
    ),
    click.option(
        "--guidance-interval",
        metavar="A:B",
        help="Guide only between two fractions of the steps, as 0.2:0.8; elsewhere a picture takes one lane "
        "instead of two. Default: 0:1.",
    ),
    click.option(
        "--prompt-syntax",
        type=click.Choice(PROMPT_SYNTAXES),
        help="weighted: A1111's (word:1.3), [word], BREAK, and prompts of any length. Default: plain.",
    ),
    click.option(
        "--lora",
        "loras",
        multiple=True,
        metavar="NAME[:WEIGHT]",
        help="A LoRA of the worker's, -10 to 10, without a weight 1; repeatable. <lora:NAME:WEIGHT> in a "
        "prompt does the same.",
    ),
    click.option(
        "--image-format",
        type=click.Choice(IMAGE_FORMATS),
        help="Of the pictures' files; jpeg and webp are smaller and lossy. Default: png.",
    ),
    click.option(
        "--quality", type=int, metavar="N", help=f"Of jpeg and webp, 1 to 100. Default: {DEFAULT_QUALITY}."
    ),
)

submission_flags = stacked(
    click.option("--name", metavar="TEXT", help="A name that can be used instead of the id."),
    click.option(
        "--priority", type=int, default=0, show_default=True, metavar="N", help="Higher goes first."
    ),
    click.option(
        "--weight",
        type=float,
        default=1.0,
        show_default=True,
        metavar="X",
        help="Share among equal priorities.",
    ),
    click.option(
        "--max-running", type=int, metavar="N", help="At most N of its jobs at once. Default: no limit."
    ),
    click.option(
        "--key", metavar="TEXT", help="Idempotency key: a second submit resumes or returns the first."
    ),
    click.option(
        "--again",
        is_flag=True,
        help="Render anew what an earlier submission has already: the same jobs with the same seeds.",
    ),
    click.option(
        "--reuse",
        is_flag=True,
        help="Take over single pictures of earlier submissions, where this very one is there already.",
    ),
)

dry_run_flag = click.option(
    "--dry-run", is_flag=True, help="Show how many jobs it makes, some of them, and how long they may take."
)


sidecar_flag = click.option(
    "--sidecar",
    is_flag=True,
    help="Beside each picture a .json of the same name, with its job, parameters, columns and hashes.",
)


def check_submission_flags(
    *,
    name: str | None,
    priority: int,
    weight: float,
    max_running: int | None,
    key: str | None,
    again: bool = False,
    reuse: bool = False,
) -> None:
    """Check the flags of a submission; BadInputError about the first that cannot be used."""
    if name is not None and not _NAME.fullmatch(name):
        raise BadInputError(
            f"--name {name!r} cannot be used; take up to 100 letters, digits, blanks and . _ + = -, "
            f"beginning with a letter or digit."
        )
    if key is not None and again:
        raise BadInputError("--again renders anew, and a --key never does; leave one of them out.")
    if reuse and again:
        raise BadInputError("--again renders anew, and --reuse takes over; leave one of them out.")
    check_share(priority=priority, weight=weight, max_running=max_running)
    if key is not None and not 1 <= len(key.strip()) <= MAX_KEY_LENGTH:
        raise BadInputError(f"--key is empty or longer than {MAX_KEY_LENGTH} characters; choose another.")


def check_share(*, priority: int | None, weight: float | None, max_running: int | None) -> None:
    """Check what a submission gets of the workers, where it is given."""
    if priority is not None and not -(2**31) <= priority < 2**31:
        raise BadInputError(f"--priority {priority} is out of range; small numbers like -10 to 10 will do.")
    if weight is not None and not 1e-3 <= weight <= 1e3:  # noqa: PLR2004  (said in the sentence)
        raise BadInputError(f"--weight {weight} is out of range; choose 0.001 to 1000.")
    if max_running is not None and not 1 <= max_running < 2**31:
        raise BadInputError(f"--max-running {max_running} is out of range; give 1 or more, or leave it out.")


def given_flags(ctx: click.Context, names: Sequence[str] = ()) -> list[str]:
    """Return the options that the user typed, like `--lanes`: of `names`, or all."""
    typed = click.core.ParameterSource.COMMANDLINE
    return [
        parameter.opts[-1]
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option)
        and parameter.name is not None
        and ctx.get_parameter_source(parameter.name) is typed
        and (not names or parameter.name in names)
    ]
