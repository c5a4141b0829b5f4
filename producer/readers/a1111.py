"""Lines of options, as A1111's script "Prompts from file or textbox" reads them, with a shell's quoting."""

from __future__ import annotations

import shlex
from collections import deque

from producer.lines import Line, Problem
from producer.readers.columns import options_line
from producer.readers.kinds import OPTION
from producer.readers.kohya import unknown_option

_FIELDS = {
    "--prompt": "prompt",
    "--negative_prompt": "negative_prompt",
    "--seed": "seed",
    "--steps": "num_inference_steps",
    "--cfg_scale": "guidance_scale",
    "--width": "width",
    "--height": "height",
    "--sampler_name": "sampler",
    "--n_iter": "images",
}
_PROSE = ("prompt", "negative_prompt")  # may go on without quotes, as there
_REFUSED = dict.fromkeys(
    ("--styles", "--subseed", "--subseed_strength", "--seed_resize_from_h", "--seed_resize_from_w",
     "--restore_faces", "--tiling", "--sampler_index"),
    "promptmill has nothing like it; remove it",
) | dict.fromkeys(
    ("--outpath_samples", "--outpath_grids", "--do_not_save_samples", "--do_not_save_grid",
     "--prompt_for_display"),
    "it says how A1111 keeps pictures; remove it, and see --out and `promptmill export`",
) | {
    "--batch_size": "batches are formed as they fit the device; write --n_iter for the number of pictures",
    "--sd_model": "a list has one model; remove it, and name the model with the command's --model",
}  # fmt: skip


def parse_a1111(text: str, file: str, number: int) -> Line | Problem:
    """Make a line of options that hold the prompt too; a line that has none is a prompt."""
    start = OPTION.search(text)
    if start is None:
        return Line(file=file, line=number, prompt=text.strip())
    try:
        words = deque(shlex.split(text))
    except ValueError:  # a quotation mark without its partner, or a backslash at the end
        reason = 'the quotation marks do not match; write --prompt "…", and \\" for one inside.'
        return Problem(file=file, line=number, reason=reason)
    given = []
    while words:
        name = words.popleft()
        column = max(0, text.find(name)) + 1
        if name not in _FIELDS:
            return Problem(file=file, line=number, column=column, reason=_refusal(name))
        value = _value(_FIELDS[name], words)
        given.append((name, _FIELDS[name], value, column))
    return options_line(given, prompt=None, file=file, number=number)


def _refusal(name: str) -> str:
    if name in _REFUSED:
        return f"{name} cannot be used: {_REFUSED[name]}."
    if not name.startswith("--"):
        return "there is text outside the options; put a prompt with blanks in quotes."
    return unknown_option(name, _FIELDS)


def _value(field: str, words: deque[str]) -> str:
    """Take an option's value off the words; a prompt without quotes goes on to the next option."""
    if not words or (field not in _PROSE and words[0].startswith("--")):
        return ""
    taken = [words.popleft()]
    while field in _PROSE and words and not words[0].startswith("--"):
        taken.append(words.popleft())
    return " ".join(taken)
