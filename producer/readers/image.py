"""Parameters out of a picture: ours or another program's infotext, else whatever sd-parsers can tell.

A1111, Forge and Civitai write an infotext, as we do: in a PNG's `parameters`, else in EXIF's UserComment.
ComfyUI, InvokeAI and others write JSON of their own; for those sd-parsers (extra `images`) is asked.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

from producer.jobs import JobOptions
from producer.lines import Line, Problem
from storage.errors import BadInputError
from storage.infotext import read_infotext
from storage.prompt_syntax import WEIGHTED
from storage.samplers import resolve_sampler

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
_OURS = "promptmill"
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
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only pictures need it)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its pixels are never read
            with Image.open(name) as picture:
                found = _infotext(picture)
        fields = read_infotext(found) if found else _from_others(Path(name))
        return _line(name, fields, options)
    except UnidentifiedImageError:
        reason = "this is no picture; name a PNG, JPEG or WebP file."
    except FileNotFoundError:
        reason = "there is no such file; check its name."
    except Image.DecompressionBombError:
        reason = "the picture is too large to be one of ours; is this the right file?"
    except BadInputError as error:
        reason = str(error)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        reason = f"it cannot be read ({getattr(error, 'strerror', None) or error})."
    return Problem(file=name, reason=reason)


def _infotext(picture: Any) -> str:
    """Return the infotext of an open picture, "" if it has none."""
    text = picture.info.get("parameters")
    if isinstance(text, str) and text.strip():
        return text
    comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    return _decoded(comment) if isinstance(comment, bytes) else str(comment)


def _decoded(comment: bytes) -> str:
    """Read a UserComment: eight bytes say how the rest is written."""
    code, rest = comment[:8], comment[8:]
    if code.startswith(b"UNICODE"):
        # In the byte order of the file by the standard, big-endian by everybody's use.
        order = "utf-16-le" if rest[1:2] == b"\0" else "utf-16-be"
        return rest.decode(order, errors="replace").strip("\0")
    return (rest if code.strip(b"\0") in (b"ASCII", b"") else comment).decode("utf-8", errors="replace")


def _from_others(path: Path) -> dict[str, Any]:
    """Ask sd-parsers; BadInputError where nobody knows."""
    nobody = "it does not say how it was made"
    try:
        from sd_parsers import ParserManager  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"{nobody} as A1111 writes it; `pip install 'promptmill[images]'` reads other programs', too."
        ) from error
    known = ParserManager().parse(path)
    if known is None or not known.full_prompt:
        raise BadInputError(f"{nobody}; give its prompt with -p.")
    fields: dict[str, Any] = {
        "prompt": known.full_prompt,
        "negative_prompt": known.full_negative_prompt or "",
    }
    fields["other"] = {}
    if known.samplers:
        sampler = known.samplers[0]
        asked = sampler.parameters
        numbers = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "seed": "seed"}
        fields |= {ours: asked[name] for ours, name in numbers.items() if name in asked}
        try:
            fields["sampler"] = resolve_sampler(sampler.name)[0]
        except BadInputError:
            fields["other"]["Sampler"] = sampler.name
    return fields


def _line(name: str, fields: dict[str, Any], options: JobOptions) -> Line:
    if (sampler := fields.get("other", {}).get("Sampler")) and not options.sampler:
        raise BadInputError(f"its sampler {sampler!r} has no counterpart here; say which with --sampler.")
    settings = {key: fields[key] for key in _SETTINGS if fields.get(key) not in (None, "")}
    # Other programs weigh brackets always; ours say when they do.
    if not str(fields.get("version", "")).startswith(_OURS):
        settings["options"] = {**settings.get("options", {}), "prompt_syntax": WEIGHTED}
    typed = {key for key in _SETTINGS if key != "options" and getattr(options, key) not in (None, "")}
    typed |= options.said | options.swept | ({"schedule"} if typed & {"sampler"} else set())
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
