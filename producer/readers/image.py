"""`--from-image`: the line that renders a picture again, as far as it says how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from producer.jobs import JobOptions
from producer.lines import Line, Problem
from producer.output import printable, remark
from producer.readers.picture import OURS, Said, read_picture
from storage.errors import BadInputError
from storage.parameters import other_format
from storage.prompt_syntax import WEIGHTED

_SETTINGS = (
    "negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "schedule", "width", "height",
    "options",
)  # fmt: skip


def read_image(name: str, options: JobOptions) -> Line | Problem:
    """Return the line that renders a picture again, as far as it says how it was made.

    Args:
        name: of the file.
        options: the command's flags, which beat the picture: it is where one begins, not what one insists on.
    """
    try:
        said = read_picture(Path(name))
        line = _line(name, said, options)
    except BadInputError as error:
        return Problem(file=name, reason=str(error))
    if said.problem:
        remark(printable(f"Warning: {name}: {said.problem} Its infotext is taken instead."))
    return line


def _line(name: str, said: Said, options: JobOptions) -> Line:
    fields: dict[str, Any] = said.fields
    if not said.written_by:
        raise BadInputError(said.problem)
    if not fields.get("prompt"):
        raise BadInputError("it does not say its prompt; give it with -p.")
    if (sampler := fields.get("other", {}).get("Sampler")) and not options.sampler:
        raise BadInputError(f"its sampler {sampler!r} has no counterpart here; say which with --sampler.")
    settings = {key: fields[key] for key in _SETTINGS if fields.get(key) not in (None, "", {})}
    # Other programs weigh brackets always; ours say when they do.
    if not str(fields.get("version", "")).startswith(OURS):
        settings["options"] = {**settings.get("options", {}), "prompt_syntax": WEIGHTED}
    typed = {key for key in _SETTINGS if key != "options" and getattr(options, key) not in (None, "")}
    typed |= options.said | options.swept
    typed |= {"schedule"} if "sampler" in typed else set()
    if "image_format" in options.swept or (
        "image_format" in typed and other_format(settings.get("options", {}), options.options)
    ):
        typed.add("quality")
    kept = {key: value for key, value in settings.items() if key not in typed}
    if "options" in kept:
        kept["options"] = {key: value for key, value in kept["options"].items() if key not in typed}
    named = bool(options.seeds) or "seed" in options.swept or "seed" not in fields
    return Line(
        file=name,
        line=0,
        prompt=fields["prompt"],
        settings=kept,
        seeds=() if named else (int(fields["seed"]),),
        extra={"from_image": Path(name).name},
    )
