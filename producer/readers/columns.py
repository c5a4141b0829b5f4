"""From named values to a line: what columns are called, what each has to hold, what becomes of it.

Options of text lines go the same way as the cells of a table, so that every format means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from producer.lines import Line, Problem
from producer.readers import kinds
from producer.readers.kinds import UnfitError
from storage.inputs import CONTROL_SCALE, INPUTS, MASK_IMAGE, STRENGTH
from storage.parameters import OPTION_DEFAULTS

Convert = Callable[[str, Any], Any]

# field -> what its value has to be; the fields of `JobParameters` by their own names
CONVERTERS: dict[str, Convert] = {
    "prompt": kinds.prose,
    "negative_prompt": kinds.prose,
    "seed": kinds.seeds,
    "images": kinds.whole_number,
    "num_inference_steps": kinds.whole_number,
    "guidance_scale": kinds.number,
    "width": kinds.whole_number,
    "height": kinds.whole_number,
    "size": kinds.size,
    "sampler": kinds.sampler,
    "schedule": kinds.schedule,
    "eta": kinds.number,
    "guidance_rescale": kinds.number,
    "guidance_interval": kinds.interval,
    "prompt_syntax": kinds.prompt_syntax,
    "loras": kinds.loras,
    "image_format": kinds.image_format,
    "quality": kinds.whole_number,
    **dict.fromkeys(INPUTS, kinds.text),  # names of files, until `producer.inputs` has read them
    STRENGTH: kinds.number,
    CONTROL_SCALE: kinds.number,
    "model": kinds.text,
}
_ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompts", "text", "caption"),
    "negative_prompt": ("negative",),
    "images": ("n",),
    "num_inference_steps": ("steps",),
    "guidance_scale": ("guidance", "cfg", "cfg_scale"),
    "loras": ("lora",),
    "quality": ("image_quality",),
    MASK_IMAGE: ("mask",),
    STRENGTH: ("denoising_strength",),
    CONTROL_SCALE: ("control_scale",),
}
_ALIAS_ONLY = {"quality"}  # people's own columns have that name: ratings
FIELDS: dict[str, str] = {name: name for name in CONVERTERS if name not in _ALIAS_ONLY} | {
    alias: field for field, aliases in _ALIASES.items() for alias in aliases
}
_OPTIONS = tuple(OPTION_DEFAULTS)


def field_of(name: str) -> str | None:
    """Return what a column of this name is to a job, whatever its case; None for an unknown one."""
    return FIELDS.get(name.strip().casefold().replace(" ", "_"))


class Columns:
    """The columns of a table, looked up once; `line` then turns each row into a line.

    Args:
        names: the header.
        numbered: whether a message counts the cells; the keys of a JSON object have no place.

    Raises:
        UnfitError: when no column is the prompt, or two columns are the same.
    """

    def __init__(self, names: Sequence[str], *, numbered: bool = True) -> None:
        # Tables that pandas wrote begin with a column without a name.
        self.names = [name.strip() or f"column {at}" for at, name in enumerate(names, 1)]
        self._numbered = numbered
        for at, name in enumerate(self.names):
            if kinds.UNSTORABLE.search(name):
                raise UnfitError(
                    f"column {kinds.shown(name)} has a character that no database keeps; rename it.",
                    self._place(at),
                )
        fields = [field_of(name) for name in self.names]
        self._check(fields)
        self._prompt = fields.index("prompt")
        self._known = [
            (at, self.names[at], field, CONVERTERS[field])
            for at, field in enumerate(fields)
            if field is not None
        ]
        self._unknown = [(at, self.names[at]) for at, field in enumerate(fields) if field is None]

    def _check(self, fields: Sequence[str | None]) -> None:
        seen: dict[tuple[str | None, str], str] = {}
        for at, (field, name) in enumerate(zip(fields, self.names, strict=True)):
            first = seen.setdefault((field, "" if field else name), name)
            if len(seen) <= at:
                raise UnfitError(
                    f"columns {kinds.shown(first)} and {kinds.shown(name)} are the same; rename one.",
                    self._place(at),
                )
        if "prompt" not in fields:
            listed = ", ".join(kinds.shown(name) for name in self.names[:8]) or "none"
            raise UnfitError(
                f"no column is the prompt (there is {listed}); call one prompt, prompts, text or caption."
            )

    def _place(self, at: int) -> int | None:
        return at + 1 if self._numbered else None

    def line(self, values: Sequence[Any], *, file: str, number: int) -> Line | Problem | None:
        """Return the line that a row's values make, in the order of the names; None where all are empty."""
        found: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        at = self._prompt
        try:
            for at, name, field, convert in self._known:
                if (value := _given(values[at])) is not None:
                    found[field] = convert(name, value)
            for at, name in self._unknown:
                if (value := _given(values[at])) is not None:
                    extra[name] = kinds.kept(name, value)
        except UnfitError as unfit:
            return Problem(file=file, line=number, column=self._place(at), reason=str(unfit))
        if not found and not extra:
            return None
        if "prompt" not in found:
            reason = "the prompt is empty; give it at least one word."
            return Problem(file=file, line=number, column=self._place(self._prompt), reason=reason)
        return make_line(found, extra, file=file, number=number)


def _given(value: Any) -> Any:
    """Return what a cell holds, white space stripped; None where it says nothing."""
    return value.strip() or None if isinstance(value, str) else value


def make_line(found: dict[str, Any], extra: dict[str, Any], *, file: str, number: int) -> Line | Problem:
    """Make a line of converted values by field; `found` is used up."""
    prompt = found.pop("prompt")
    if not found:
        return Line(file=file, line=number, prompt=prompt, extra=extra)
    seeds, images, model = found.pop("seed", ()), found.pop("images", None), found.pop("model", None)
    drawn = seeds == (kinds.DRAW,)
    try:
        settings = _settings(found)
    except UnfitError as unfit:
        return Problem(file=file, line=number, reason=str(unfit))
    return Line(
        file=file, line=number, prompt=prompt, settings=settings,
        seeds=() if drawn else seeds, drawn=drawn, images=images, model=model, extra=extra,
    )  # fmt: skip


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a job: size as width and height, the schedule that a sampler's name brings."""
    if (size := found.pop("size", None)) is not None:
        if "width" in found or "height" in found:
            raise UnfitError("size says width and height already; leave them out.")
        found["width"], found["height"] = size
    if "sampler" in found:
        found["sampler"], named = found["sampler"]
        if named is not None and found.setdefault("schedule", named) != named:
            raise UnfitError(
                f"the sampler's name asks for the {named} schedule and the schedule is {found['schedule']}; "
                f"leave one out."
            )
    if options := {name: found.pop(name) for name in _OPTIONS if name in found}:
        found["options"] = options
    return found


def options_line(
    given: Sequence[tuple[str, str, str, int]], *, prompt: str | None, file: str, number: int
) -> Line | Problem:
    """Make a line of options that a text line gives: name as written, field, value, column."""
    found: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    for name, field, value, column in given:
        try:
            found[field] = _converted(name, field, value.strip(), taken=field in found)
        except UnfitError as unfit:
            return Problem(file=file, line=number, column=column, reason=str(unfit))
    if not found.get("prompt"):
        return Problem(file=file, line=number, reason="the line has options and no prompt; give it one.")
    return make_line(found, {}, file=file, number=number)


def _converted(name: str, field: str, value: str, *, taken: bool) -> Any:
    if taken:
        raise UnfitError(f"{name} is given twice; leave one out.")
    if not value and field not in ("prompt", "negative_prompt"):
        raise UnfitError(f"{name} has no value; give it one, or leave it out.")
    return CONVERTERS[field](name, value)
