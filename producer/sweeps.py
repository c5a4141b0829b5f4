"""Lists and ranges on the command line: `--sweep guidance=3,5,7.5 --sweep steps=10..50:10`, `--seed 1..8`."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException, InvalidOperation
from typing import Any

from storage.errors import BadInputError
from storage.inputs import CONTROL_SCALE
from storage.loras import parse_loras
from storage.parameters import check_prompt, check_seed, read_image_format
from storage.samplers import SCHEDULES, resolve_sampler

MAX_VALUES = 10_000  # of one list, and of all combinations
MAX_DIGITS = 20  # of a range's numbers, before or after the point; a seed has 19
_SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")  # noqa: RUF001  (people do type the multiplication sign)

# What a combination sets: parameters by their name in `JobParameters`, and `seed`.
Setting = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One `--sweep`: what it is called and what each of its values sets."""

    name: str
    settings: tuple[Setting, ...]


def parse_axis(text: str) -> Axis:
    """Read `NAME=VALUES`; values are joined by commas (or by `|` where they hold commas) or a range.

    Raises:
        BadInputError: for an unknown name, or a value that is none.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    reader = _READERS.get(name.lower().replace("-", "_"))
    if not equals or reader is None:
        near = difflib.get_close_matches(name.lower(), _READERS, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise BadInputError(
            f"--sweep {text!r} cannot be used{meant}; write NAME=VALUES, for example guidance=3,5,7.5 or "
            f"steps=10..50:10, with one of {', '.join(SHOWN_NAMES)}."
        )
    try:
        settings = [reader(value) for value in split_values(values, words=reader in _WORDS)]
        _check_distinct(settings)
        return Axis(name=name, settings=tuple(settings))
    except BadInputError as error:
        raise BadInputError(f"--sweep {text!r}: {error}") from error


def _check_distinct(settings: Iterable[Setting]) -> None:
    seen = set()
    for setting in settings:
        key = repr(sorted(setting.items()))
        if key in seen:
            shown = ", ".join(f"{name} {value}" for name, value in setting.items())
            raise BadInputError(f"{shown} is there twice; leave one out.")
        seen.add(key)


def split_values(text: str, *, words: bool = False) -> list[str]:
    """Read a list of values and ranges: `3,5,7.5`, `10..50:10`, `1..3,8`; a range's end belongs to it.

    Args:
        text: the list.
        words: whether the values are words, which have no ranges and may be empty.
    """
    parts = text.split("|") if "|" in text else text.split(",")
    if words:
        return [part.strip() for part in parts]
    values: list[str] = []
    for part in parts:
        if not part.strip():
            raise BadInputError("a value is empty; write them as 3,5,7.5 or 10..50:10.")
        values += _range(part.strip(), MAX_VALUES - len(values)) if ".." in part else [part.strip()]
        if len(values) > MAX_VALUES:
            raise BadInputError(f"these are over {MAX_VALUES:,} values; take fewer.")
    return values


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read what `--seed` says: `42`, `1,2,3`, `1..8`, or `random`, which is none of ours.

    Raises:
        BadInputError: for what is no seed, and for one that is named twice.
    """
    if text.strip().lower() in ("random", "-1"):
        return ()
    try:
        seeds = tuple(check_seed(_whole(value)) for value in split_values(text))
    except BadInputError as error:
        raise BadInputError(
            f"--seed {text!r}: {error} Give a whole number, a list 1,2,3, a range 1..8 or random."
        ) from error
    if len(set(seeds)) < len(seeds):
        raise BadInputError(f"--seed {text!r} names a seed twice; the pictures would be the same.")
    return seeds


def combine(axes: Sequence[Axis], *, zipped: bool = False) -> tuple[Setting, ...]:
    """Return what each combination sets, the last axis fastest; `({},)` without an axis.

    Args:
        axes: none may set what another sets.
        zipped: pair the first values, the second values and so on, instead of all with all.

    Raises:
        BadInputError: when two axes set the same, zipped ones are not equally long, or there are too many.
    """
    owner: dict[str, str] = {}
    for axis in axes:
        for name in sorted({name for setting in axis.settings for name in names_of(setting)}):
            if name in owner:
                raise BadInputError(
                    f"--sweep {owner[name]} and --sweep {axis.name} both set {name}; leave one out."
                )
            owner[name] = axis.name
    lengths = [len(axis.settings) for axis in axes]
    if zipped and len(set(lengths)) > 1:
        shown = ", ".join(f"{axis.name} {length}" for axis, length in zip(axes, lengths, strict=True))
        raise BadInputError(f"--zip pairs sweeps of equal length, and these have {shown}; mend or drop it.")
    total = lengths[0] if zipped and lengths else math.prod(lengths)
    if total > MAX_VALUES:
        raise BadInputError(f"The sweeps make {total:,} combinations; at most {MAX_VALUES:,} are possible.")
    rows: Iterable[tuple[Setting, ...]] = (
        zip(*(axis.settings for axis in axes), strict=True)
        if zipped and axes
        else itertools.product(*(axis.settings for axis in axes))
    )
    return tuple(_merged(row) for row in rows)


def names_of(setting: Setting) -> set[str]:
    """Return what a setting sets: parameters, and the names in its `options`."""
    return {*setting, *setting.get("options", {})} - {"options"}


def _merged(settings: Iterable[Setting]) -> Setting:
    merged: Setting = {}
    for setting in settings:
        options = {**merged.get("options", {}), **setting.get("options", {})}
        merged |= setting | ({"options": options} if options else {})
    return merged


def _range(text: str, most: int) -> list[str]:
    """Read `A..B` or `A..B:STEP`, in decimals: 0.1 added ten times is 1."""
    ends, _, step_text = text.partition(":")
    first_text, _, last_text = ends.partition("..")
    try:
        first, last = _decimal(first_text), _decimal(last_text)
        whole = first == first.to_integral_value() and last == last.to_integral_value()
        step = _decimal(step_text) if step_text.strip() or not whole else Decimal(1)
        steps = (last - first) / step
    except DecimalException:
        raise BadInputError(f"{text!r} is no range; write FIRST..LAST:STEP, for example 10..50:10.") from None
    if steps < 0:
        raise BadInputError(f"{text!r} is an empty range; write the smaller end first, or a negative step.")
    if steps + 1 > most:
        raise BadInputError(f"{text!r} has {int(steps) + 1:,} values; at most {MAX_VALUES:,} are possible.")
    return [f"{(first + step * i).normalize():f}" for i in range(int(steps) + 1)]


def _decimal(text: str) -> Decimal:
    """Read a number of sensible size; 1e999999999 would be written out, digit by digit."""
    number = Decimal(text.strip())
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS:
        raise InvalidOperation
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInputError(f"{text!r} is no whole number.") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInputError(f"{text!r} is no number.") from None


def parse_size(text: str, *, what: str = "--size") -> tuple[int, int]:
    """Read `512x768` as width and height in pixels, or raise BadInputError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        shown = f"{what} {text!r}".lstrip()
        raise BadInputError(f"{shown} is no size; write WIDTHxHEIGHT, for example 512x512.")
    return int(match[1]), int(match[2])


def parse_interval(text: str, *, what: str = "--guidance-interval") -> list[float]:
    """Read `0.2:0.8` as two fractions, or raise BadInputError."""
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        shown = f"{what} {text!r}".lstrip()
        raise BadInputError(f"{shown} is no interval; write A:B, for example 0.2:0.8.") from None
    return [first, last]


def _schedule(text: str) -> str:
    if text not in SCHEDULES:
        raise BadInputError(f"there is no schedule {text!r}; choose one of {', '.join(SCHEDULES)}.")
    return text


def _read_sampler(text: str) -> Setting:
    sampler, schedule = resolve_sampler(text)
    return {"sampler": sampler} | ({"schedule": schedule} if schedule else {})


def _read_size(text: str) -> Setting:
    return dict(zip(("width", "height"), parse_size(text, what="size"), strict=True))


def _setting(name: str, read: Callable[[str], Any]) -> Callable[[str], Setting]:
    return lambda text: {name: read(text)}


def _option(name: str, read: Callable[[str], Any]) -> Callable[[str], Setting]:
    return lambda text: {"options": {name: read(text)}}


_READERS: Mapping[str, Callable[[str], Setting]] = {
    **dict.fromkeys(("steps", "num_inference_steps"), _setting("num_inference_steps", _whole)),
    **dict.fromkeys(("guidance", "cfg", "cfg_scale", "guidance_scale"), _setting("guidance_scale", _number)),
    **dict.fromkeys(
        ("negative", "negative_prompt"),
        _setting("negative_prompt", lambda text: check_prompt(text, what="negative prompt")),
    ),
    "sampler": _read_sampler,
    "schedule": _setting("schedule", _schedule),
    "seed": _setting("seed", lambda text: check_seed(_whole(text))),
    "size": _read_size,
    "width": _setting("width", _whole),
    "height": _setting("height", _whole),
    "eta": _option("eta", _number),
    "guidance_rescale": _option("guidance_rescale", _number),
    "guidance_interval": _option("guidance_interval", parse_interval),
    "prompt_syntax": _option("prompt_syntax", str),
    **dict.fromkeys(("lora", "loras"), _option("loras", parse_loras)),
    "image_format": _option("image_format", read_image_format),
    "quality": _option("quality", _whole),
    **dict.fromkeys(("strength", "denoising_strength"), _option("strength", _number)),
    **dict.fromkeys(("control_scale", CONTROL_SCALE), _option(CONTROL_SCALE, _number)),
}
_WORDS = (_READERS["negative"], _READERS["lora"])
SHOWN_NAMES = (
    "steps", "guidance", "sampler", "schedule", "seed", "size", "width", "height", "negative", "eta",
    "guidance_rescale", "guidance_interval", "prompt_syntax", "lora", "image_format", "quality", "strength",
    "control_scale",
)  # fmt: skip
