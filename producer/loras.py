"""LoRAs of a list: those that prompts name themselves, and those that nobody knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from producer.jobs import JobOptions, parameters_of, with_setting
from producer.lines import Line
from storage.errors import BadInputError
from storage.loras import OPTION, has_tag, lora_list, lora_set, no_such_lora, take_tags

if TYPE_CHECKING:
    from producer.prompts import PromptList


def with_tagged_loras(line: Line, options: JobOptions) -> Line:
    """Take each `<lora:NAME:WEIGHT>` out of a line's prompt, and make a setting of it, as A1111 does.

    What the flags or the line's own column say of other LoRAs stays; of the same one, the prompt's weight
    beats the flags'.

    Args:
        line: as it was read, styles and templates applied.
        options: the flags.

    Raises:
        BadInputError: for a tag that cannot be read, one in a negative prompt, and a LoRA that the line names
            twice.
    """
    negatives = [line.settings.get("negative_prompt", options.negative_prompt)]
    negatives += [setting["negative_prompt"] for setting in options.sweep if "negative_prompt" in setting]
    if negative := next(filter(has_tag, negatives), ""):
        raise BadInputError(
            f"The negative prompt names a LoRA ({negative[:40]!r}), which is for the whole picture; write it "
            f"in the prompt, or with --lora."
        )
    if not has_tag(line.prompt):
        return line
    prompt, pairs = take_tags(line.prompt)
    own = line.settings.get("options", {})
    told = lora_set(own if OPTION in own else {})
    lora_list([*told, *pairs])  # twice in one line is a slip
    below = told if OPTION in own else lora_set(options.options)
    if OPTION in options.swept:
        raise BadInputError("This prompt names a LoRA, and so does a --sweep; leave one of them out.")
    merged = {OPTION: lora_list((dict(below) | dict(pairs)).items())}
    return dataclasses.replace(line, prompt=prompt, settings={**line.settings, "options": {**own, **merged}})


def unknown_loras(line: Line, options: JobOptions, known: Collection[str]) -> str | None:
    """Say that a line and the flags ask for a LoRA that nobody knows; None if all are known."""
    names = _names(line, options) - set(known)
    return no_such_lora(names, known) if names else None


def origin_of_loras(prompts: PromptList, options: JobOptions, known: Mapping[str, str]) -> str:
    """Return what tells the files of a list's LoRAs from others; "" where it has none."""
    names = {name for line in prompts.samples() for name in _names(line, options)}
    return " ".join(f" {name}={known.get(name, '')}" for name in sorted(names))


def _names(line: Line, options: JobOptions) -> set[str]:
    asked = parameters_of(line, options)
    settings = (with_setting(asked, setting).options for setting in options.sweep)
    return {name for own in settings for name, _ in lora_set(own)}
