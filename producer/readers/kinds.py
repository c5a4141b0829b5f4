"""What a value of a prompt file has to be: text, a whole number, a size, a sampler and so on.

Each function takes the value's name as the user wrote it (for the message) and the value, as text or as JSON
and Parquet type it, and returns what a job wants; ranges are checked later, with the whole job.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from typing import Any

from producer.sweeps import parse_interval, parse_size
from storage.errors import BadInputError
from storage.loras import parse_loras
from storage.parameters import IMAGE_FORMATS, read_image_format
from storage.prompt_syntax import PROMPT_SYNTAXES
from storage.samplers import SCHEDULES, resolve_sampler

LONGEST_NUMBER = 40  # characters
DEEPEST = 16  # levels of a nested value that is kept
DRAW = -1  # as a seed, A1111's way to say: any
OPTION = re.compile(r"(?:^|(?<=\s))--[A-Za-z]\S*")  # as kohya's and A1111's, of a name that may be unknown
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_SCHEDULES = {name: name for name in SCHEDULES} | {
    label.casefold(): name for name, label in SCHEDULES.items() if label
}


class UnfitError(ValueError):
    """A value cannot be used; the message is the whole reason, `column` where it stands if that is known."""

    def __init__(self, reason: str, column: int | None = None) -> None:
        super().__init__(reason)
        self.column = column


def shown(value: Any) -> str:
    """Write a value for a message, shortened."""
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST_NUMBER else repr(value[:LONGEST_NUMBER]) + "…"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    written = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return written if len(written) <= LONGEST_NUMBER else written[:LONGEST_NUMBER] + "…"


def text(name: str, value: Any) -> str:
    """Take text only: a number may be a mistake in the columns."""
    if isinstance(value, str):
        return value
    raise UnfitError(f"{name} has to be text, not {shown(value)}; put it in quotes.")


def prose(name: str, value: Any) -> str:
    """Take the text of a prompt; what looks like an option in it would not do what it says."""
    prompt = text(name, value)
    if "--" in prompt and (option := OPTION.search(prompt)):
        raise UnfitError(
            f"{name} has {shown(option[0])}, which looks like an option, and those are read from text lines "
            f"only; remove it, or put a space after the dashes."
        )
    return prompt


def whole_number(name: str, value: Any) -> int:
    """Take `20` and also `20.0`, which is how tables write a whole number in a column with gaps."""
    number = value
    if isinstance(value, str):
        if len(value) <= LONGEST_NUMBER and _WHOLE.fullmatch(value):
            return int(value)
        number = _read_float(value)
    if isinstance(number, float) and number.is_integer() and abs(number) <= 2**53:
        return int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise UnfitError(f"{name} {shown(value)} is not a whole number; write digits, for example 20.")


def number(name: str, value: Any) -> float:
    """Take a finite number."""
    found = _read_float(value) if isinstance(value, str) else value
    if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= sys.float_info.max:
        return float(found)  # neither NaN nor infinite
    raise UnfitError(f"{name} {shown(value)} is not a number; write one, for example 7.5.")


def seeds(name: str, value: Any) -> tuple[int, ...]:
    """Take one seed or several: `42`, `1,2,3` or a list; -1 alone asks for a drawn one, and stays."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= LONGEST_NUMBER:
        return (int(value),)  # the usual case, and fast
    given = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        found = tuple(whole_number(name, each.strip() if isinstance(each, str) else each) for each in given)
    except UnfitError:
        raise UnfitError(
            f"{name} {shown(value)} is no list of whole numbers; write 42, or several as 1,2,3."
        ) from None
    return found


def size(name: str, value: Any) -> tuple[int, int]:
    """Take `512x768`."""
    try:
        return parse_size(text(name, value))
    except (BadInputError, UnfitError):
        raise UnfitError(
            f"{name} {shown(value)} is no size; write WIDTHxHEIGHT, for example 512x512."
        ) from None


def interval(name: str, value: Any) -> list[float]:
    """Take `0.2:0.8` or a list of two numbers."""
    try:
        if isinstance(value, list):
            first, last = (number(name, each) for each in value)
            return [first, last]
        return parse_interval(text(name, value))
    except (BadInputError, ValueError):
        raise UnfitError(f"{name} {shown(value)} is no interval; write A:B, for example 0.2:0.8.") from None


def sampler(name: str, value: Any) -> tuple[str, str | None]:
    """Take our name or A1111's, which may bring a schedule."""
    given = text(name, value)
    if len(given) > 2 * LONGEST_NUMBER:
        raise UnfitError(f"{name} {shown(given)} is too long for a sampler; see `promptmill samplers`.")
    try:
        return _resolved(given)
    except BadInputError as error:
        raise UnfitError(str(error)) from None


def schedule(name: str, value: Any) -> str:
    """Take our name of a schedule, or the infotext's."""
    found = _SCHEDULES.get(text(name, value).casefold())
    if found is None:
        raise UnfitError(f"There is no schedule {shown(value)}; choose one of {', '.join(SCHEDULES)}.")
    return found


def prompt_syntax(name: str, value: Any) -> str:
    """Take a grammar of prompts."""
    found = text(name, value).casefold()
    if found not in PROMPT_SYNTAXES:
        raise UnfitError(f"{name} {shown(value)} is none; choose {' or '.join(PROMPT_SYNTAXES)}.")
    return found


def loras(name: str, value: Any) -> list[list[Any]]:
    """Take `style:0.8, sketch`, or a list of such texts."""
    given = value if isinstance(value, list) else [text(name, value)]
    try:
        return parse_loras(",".join(text(name, each) for each in given))
    except BadInputError as error:
        raise UnfitError(f"{name}: {error}") from None


def image_format(name: str, value: Any) -> str:
    """Take a format of pictures' files."""
    try:
        return read_image_format(text(name, value))
    except BadInputError:
        raise UnfitError(f"{name} {shown(value)} is none; choose {', '.join(IMAGE_FORMATS)}.") from None


def kept(name: str, value: Any, *, depth: int = 0) -> Any:
    """Return a value of an unknown column if every database can keep it."""
    if isinstance(value, UnfitError):  # an object with a key twice
        raise value
    if isinstance(value, str):
        if UNSTORABLE.search(value):
            raise UnfitError(f"{name} holds a NUL or half of a surrogate pair; remove it.")
    elif isinstance(value, list | dict):
        if depth == DEEPEST:
            raise UnfitError(f"{name} is nested over {DEEPEST} levels deep; flatten it.")
        for each in value if isinstance(value, list) else (*value, *value.values()):
            kept(name, each, depth=depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UnfitError(f"{name} is {value}, which cannot be kept; leave it empty.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UnfitError(f"{name} has a whole number past 2^63, which cannot be kept; put it in quotes.")
    return value


_resolved = functools.lru_cache(maxsize=256)(resolve_sampler)


def _read_float(value: str) -> float | None:
    return float(value) if len(value) <= LONGEST_NUMBER and _NUMBER.fullmatch(value) else None
