"""Options after a prompt, as kohya's sd-scripts read them: `an otter --n blurry --w 512 --s 20 --d 1,2`."""

from __future__ import annotations

from producer.lines import Line, Problem
from producer.readers.columns import options_line
from producer.readers.kinds import LONGEST_NUMBER, OPTION, shown

_FIELDS = {
    "--n": "negative_prompt",
    "--w": "width",
    "--h": "height",
    "--s": "num_inference_steps",
    "--l": "guidance_scale",
    "--d": "seed",
}


def parse_kohya(text: str, file: str, number: int) -> Line | Problem:
    """Make a line of a prompt and the options behind it; each one's value ends where the next one begins."""
    found = list(OPTION.finditer(text))
    if not found:
        return Line(file=file, line=number, prompt=text.strip())
    given = []
    for option, end in zip(found, [*(after.start() for after in found[1:]), len(text)], strict=True):
        field = _FIELDS.get(option[0].lower())
        if field is None:
            reason = unknown_option(option[0], _FIELDS)
            return Problem(file=file, line=number, column=option.start() + 1, reason=reason)
        given.append((option[0], field, text[option.end() : end], option.start() + 1))
    return options_line(given, prompt=text[: found[0].start()].strip(), file=file, number=number)


def unknown_option(name: str, known: dict[str, str]) -> str:
    """Say what can be written instead of an option that is not known."""
    written = name if len(name) <= LONGEST_NUMBER else shown(name)
    return (
        f"{written} looks like an option, and there is none of that name (known: {', '.join(known)}); remove "
        f"it, or put a space after the dashes."
    )
