"""From a line as its file has it to the lines that are rendered: styles and presets, then templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.jobchecks import check_line
from producer.jobs import JobOptions, first_seeds
from producer.lines import Line, Problem
from producer.presets import Preset, Style, apply, find_presets, read_presets
from producer.sweeps import names_of
from producer.templates import MAX_COUNT, TemplateError, Templates, template_rng
from storage.errors import BadInputError
from storage.parameters import MAX_SEED, draw_seed

if TYPE_CHECKING:
    from storage.settings import Settings

FLAGS = ("styles", "presets", "presets_file", "templates", "wildcards", "template_seed")
MAX_EXPANSIONS = 1_000_000  # of one line
# What is kept with each job that came of a template, beside the columns of its file.
TEMPLATE, TEMPLATE_SEED = "template", "template_seed"


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """What the flags say about prompts.

    Attributes:
        styles, presets: put on every line.
        mode: `random` draws a prompt for each picture, `all` makes all that there are, `off` leaves them.
        templates: expands them.
        seed: of the draws, recorded with each job.
    """

    styles: Sequence[Style] = ()
    presets: Sequence[Preset] = ()
    mode: str = "off"
    templates: Templates
    seed: int = 0

    def check(self, options: JobOptions) -> None:
        """Raise BadInputError if it does not go with the flags."""
        if self.mode == "random" and "seed" in options.swept:
            raise BadInputError(
                "--templates random draws a prompt for each picture, so a --sweep of seeds compares nothing; "
                "give them with --seed."
            )

    def lines(self, line: Line, number: int, options: JobOptions) -> Iterator[Line | Problem]:
        """Yield what a line, prompt `number` of the list, becomes; a Problem where it cannot be used."""
        styled = self._styled(line, options) if self.styles or self.presets else line
        try:
            yield from self._expanded(styled, number, options)
        except TemplateError as error:
            yield Problem(file=line.file, line=line.line or None, column=error.column, reason=error.reason)
        except BadInputError as error:
            yield Problem(file=line.file, line=line.line or None, reason=str(error))

    def _styled(self, line: Line, options: JobOptions) -> Line:
        styled = apply(line, self.styles, self.presets, flags=options)
        # A sweep is a flag, too: it beats a preset, and goes with no line that says the same.
        over = options.swept - names_of(line.settings)
        if "sampler" in over and "schedule" not in line.settings:
            over |= {"schedule"}  # it was meant for the preset's sampler
        if "image_format" in over and "quality" not in line.settings.get("options", {}):
            over |= {"quality"}  # and this one for its format
        settings = {name: value for name, value in styled.settings.items() if name not in over}
        kept = {name: value for name, value in settings.get("options", {}).items() if name not in over}
        return dataclasses.replace(styled, settings=settings | {"options": kept})

    def _expanded(self, line: Line, number: int, options: JobOptions) -> Iterator[Line]:
        if self.mode == "all":
            count = self.templates.count(line.prompt)
            if count > MAX_EXPANSIONS:
                shown = f"over {MAX_COUNT:,}" if count >= MAX_COUNT else f"{count:,}"
                raise BadInputError(
                    f"The template makes {shown} prompts; at most {MAX_EXPANSIONS:,} are possible: leave "
                    f"choices out, or take --templates random."
                )
            yield from (_told(line, text, None) for text in self.templates.expand_all(line.prompt))
        elif self.mode == "random":
            yield from self._drawn(line, number, options)
        else:
            yield line

    def _drawn(self, line: Line, number: int, options: JobOptions) -> Iterator[Line]:
        """Draw a prompt for each picture, which keeps the seed that it has without templates."""
        check_line(line, options)  # its images and seeds, which the lines that it becomes no longer have
        images = line.images or options.images
        firsts: Sequence[int | None] = first_seeds(line, number, options) or [None]
        for image in range(len(firsts) * images):
            first = firsts[image // images]
            seeds = () if first is None else (first + image % images,)
            text = self.templates.expand_random(line.prompt, template_rng(self.seed, number, image))
            yield dataclasses.replace(_told(line, text, self.seed), seeds=seeds, images=1)


def _told(line: Line, prompt: str, seed: int | None) -> Line:
    """Return the line with an expanded prompt, and what it was made of."""
    if prompt == line.prompt:
        return line
    if hidden := sorted({TEMPLATE, TEMPLATE_SEED} & line.extra.keys()):
        raise BadInputError(
            f"Its column {hidden[0]!r} would hide what the prompt was made of; rename the column."
        )
    made = {TEMPLATE: line.prompt} | ({} if seed is None else {TEMPLATE_SEED: seed})
    return dataclasses.replace(line, prompt=prompt, extra=line.extra | made)


def take_rewriting(settings: Settings, flags: dict[str, Any]) -> Rewriting | None:
    """Take the flags of `producer.options.rewriting_flags` out of all flags, and make a rewriting of them."""
    return check_rewriting(settings, **{name: flags.pop(name) for name in FLAGS})


def check_rewriting(
    settings: Settings,
    *,
    styles: Sequence[str],
    presets: Sequence[str],
    presets_file: Path | None,
    templates: str,
    wildcards: Path | None,
    template_seed: int | None,
) -> Rewriting | None:
    """Make a rewriting of the flags; None where they ask for none.

    Raises:
        BadInputError: one sentence about the first flag that cannot be used.
    """
    if templates != "random" and template_seed is not None:
        raise BadInputError("--template-seed is for --templates random; add that, or leave it out.")
    if templates == "off" and wildcards is not None:
        raise BadInputError("--wildcards needs --templates random or all; add one of them.")
    if template_seed is not None and not 0 <= template_seed <= MAX_SEED:
        raise BadInputError(f"--template-seed {template_seed} is out of range; choose 0 to {MAX_SEED}.")
    if not styles and not presets and templates == "off":
        if presets_file is not None:
            raise BadInputError("--presets names a file; choose of it with --style or --preset.")
        return None
    path = find_presets(settings, presets_file) if styles or presets else None
    if (styles or presets) and path is None:
        raise BadInputError(
            f"There is no file of presets here or in {settings.home}; name one with --presets FILE."
        )
    known = read_presets(path) if path else None
    return Rewriting(
        styles=[known.style(name) for name in styles] if known else (),
        presets=[known.preset(name) for name in presets] if known else (),
        mode=templates,
        templates=Templates(wildcards),
        seed=draw_seed() if template_seed is None else template_seed,
    )
