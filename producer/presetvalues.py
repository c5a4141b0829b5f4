"""The settings of a style or preset: the names they have in a file, their kinds and their limits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from producer.sweeps import parse_interval, parse_size
from storage.errors import BadInputError
from storage.inputs import CONTROL_SCALE
from storage.loras import parse_loras
from storage.parameters import (
    JobParameters,
    check_guidance,
    check_job,
    check_quality,
    check_size,
    check_steps,
    read_image_format,
)
from storage.samplers import SCHEDULES, resolve_sampler

Found = list[tuple[str, str]]  # keys, and what is wrong with their values

_LARGEST = 10**9  # a number past it is out of every range, and may be too long to be shown
_MEANT = {
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "negative_prompt": "negative",
}


def read_settings(table: Mapping[str, Any], found: Found, *, also: Collection[str] = ()) -> dict[str, Any]:
    """Return the job parameters that a table of a file says, under their names in `JobParameters`.

    Args:
        table: the file's names and values.
        found: gets what is wrong, which is left out.
        also: further keys that the table may have.
    """
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _READERS:
            found.append((key, no_such_key(key, (*also, *_READERS))))
            continue
        try:
            read = _READERS[key](value)
        except BadInputError as error:
            found.append((key, str(error)))
            continue
        options = {**settings.get("options", {}), **read.pop("options", {})}
        if doubled := [name for name in read if name in settings and settings[name] != read[name]]:
            found.append((key, f"another key says the {doubled[0]} already; leave one out."))
        settings |= read | ({"options": options} if options else {})
    _check_together(settings, found)
    return settings


def no_such_key(key: str, known: Collection[str]) -> str:
    """Say that there is no such key, and which ones may have been meant."""
    near = [_MEANT[key]] if _MEANT.get(key) in known else difflib.get_close_matches(key, known, n=2)
    hint = f"write {' or '.join(near)}" if near else f"known are {', '.join(known)}"
    return f"there is no such key; {hint}."


def _check_together(settings: Mapping[str, Any], found: Found) -> None:
    try:
        check_job(JobParameters(prompt="any", seed=0, **{"sampler": None, "schedule": None, **settings}))
    except BadInputError as error:
        found.append(("together", str(error)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError("this is no number; write one without quotes.")
    if abs(value) > _LARGEST:
        raise BadInputError("this number is far out of range.")
    return value


def _whole(value: Any) -> int:
    number = _number(value)
    if not isinstance(number, int):
        raise BadInputError("this is no whole number.")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadInputError("this is no text; put it in quotes.")
    return value


def _sampler(value: Any) -> dict[str, Any]:
    name, schedule = resolve_sampler(_text(value))
    return {"sampler": name} | ({"schedule": schedule} if schedule else {})


def _schedule(value: Any) -> dict[str, Any]:
    if _text(value) not in SCHEDULES:
        raise BadInputError(f"There is no schedule {value!r}; choose one of {', '.join(SCHEDULES)}.")
    return {"schedule": value}


def _size(value: Any) -> dict[str, Any]:
    width, height = parse_size(_text(value), what="")  # no flag here
    return {"width": check_size(width), "height": check_size(height, what="height")}


def _interval(value: Any) -> dict[str, Any]:
    ends = parse_interval(value, what="") if isinstance(value, str) else value
    if not isinstance(ends, list):
        raise BadInputError('this is no interval; write "A:B", for example "0.2:0.8".')
    return _option("guidance_interval", [float(_number(end)) for end in ends])


def _option(name: str, value: Any) -> dict[str, Any]:
    check_job(JobParameters(prompt="any", seed=0, sampler=None, schedule=None, options={name: value}))
    return {"options": {name: value}}


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "steps": lambda value: {"num_inference_steps": check_steps(_whole(value))},
    "guidance": lambda value: {"guidance_scale": check_guidance(_number(value))},
    "sampler": _sampler,
    "schedule": _schedule,
    "size": _size,
    "width": lambda value: {"width": check_size(_whole(value))},
    "height": lambda value: {"height": check_size(_whole(value), what="height")},
    "eta": lambda value: _option("eta", float(_number(value))),
    "guidance_rescale": lambda value: _option("guidance_rescale", float(_number(value))),
    "guidance_interval": _interval,
    "prompt_syntax": lambda value: _option("prompt_syntax", _text(value)),
    "lora": lambda value: {"options": {"loras": parse_loras(_text(value))}},
    "image_format": lambda value: _option("image_format", read_image_format(_text(value))),
    "strength": lambda value: _option("strength", float(_number(value))),
    "control_scale": lambda value: _option(CONTROL_SCALE, float(_number(value))),
    "quality": lambda value: {"options": {"quality": check_quality(_whole(value))}},
}
