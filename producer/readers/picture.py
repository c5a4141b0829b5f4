"""What a picture file says of itself: our record, else an infotext, else what sd-parsers can tell.

A1111, Forge and Civitai write an infotext, as we do; where it stands `storage.picture_metadata` knows.
ComfyUI, InvokeAI and others write JSON of their own; for those sd-parsers (extra `images`) is asked.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import BadInputError
from storage.infotext import read_infotext
from storage.parameters import parameters_of
from storage.picture_metadata import INFOTEXT, Texts, read_texts
from storage.picture_record import Record, read_record
from storage.samplers import resolve_sampler

OURS = "promptmill"
_NOBODY = "it does not say how it was made"
# sd-parsers 0.6 remembers what it read of the last picture by its `id`, which the next one must not get.
_asked_last: list[Any] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a picture file says.

    Attributes:
        file_sha256: over the file's bytes.
        format: as Pillow calls it: `PNG`, `JPEG`, `WEBP`, …
        size: (width, height) of the picture, in pixels.
        written_by: `promptmill`, `infotext` (A1111 and whoever writes as it does), or the name that
            sd-parsers has for the program; "" where the file says nothing that anybody could read.
        infotext: as it stands in the file, "" without one.
        record: ours, if it is there and intact.
        fields: prompt, negative_prompt, seed and so on, as `storage.infotext.read_infotext` names them.
        problem: why the record or everything could not be read, "" if all is well.
    """

    file_sha256: str
    format: str
    size: tuple[int, int]
    written_by: str
    infotext: str = ""
    record: Record | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_picture(path: Path) -> Said:
    """Read what a picture says; its pixels stay unread.

    Raises:
        BadInputError: it is no picture, or cannot be read; the sentence begins small, after the file's name.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only pictures need it)

    try:
        _check_plain(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file) as picture:
                seen: dict[str, Any] = {
                    "file_sha256": digest,
                    "format": str(picture.format),
                    "size": picture.size,
                }
                texts = read_texts(picture)
                understood = _understood(picture, texts)
        return Said(**seen, infotext=texts.infotext, **understood)
    except UnidentifiedImageError as error:
        raise BadInputError("this is no picture; name a PNG, JPEG or WebP file.") from error
    except FileNotFoundError as error:
        raise BadInputError("there is no such file; check its name.") from error
    except IsADirectoryError as error:
        raise BadInputError("this is a folder; name a picture in it.") from error
    except Image.DecompressionBombError as error:
        raise BadInputError("the picture is too large to be one of ours; is this the right file?") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"it cannot be read ({reason}).") from error


def _check_plain(path: Path) -> None:
    """Refuse what may have no end, or no beginning to go back to."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BadInputError("this is a device or a pipe; name a picture's file.")


def _understood(picture: Any, texts: Texts) -> dict[str, Any]:
    """Return what the texts mean, as attributes of `Said`."""
    problem = ""
    if texts.record:
        try:
            return _of_record(read_record(texts.record))
        except BadInputError as error:
            problem = str(error)
    fields = read_infotext(texts.infotext)
    ours = str(fields.get("version", "")).startswith(OURS)
    of_infotext = {"written_by": OURS if ours else "infotext", "fields": fields, "problem": problem}
    if fields["other"] or fields.keys() - {"prompt", "negative_prompt", "other"}:
        return of_infotext
    others = {"written_by": "", "problem": problem} if problem else _of_others(picture)
    # A prompt alone may be an infotext; as a comment it is anything that somebody had to say.
    return of_infotext if not others["written_by"] and INFOTEXT in picture.info else others


def _of_record(record: Record) -> dict[str, Any]:
    fields = {**parameters_of(record.parameters), "model": record.model, "version": OURS, "other": {}}
    return {"written_by": OURS, "record": record, "fields": fields}


def _of_others(picture: Any) -> dict[str, Any]:
    """Ask sd-parsers."""
    try:
        from sd_parsers import ParserManager  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError:
        more = "as A1111 writes it; `pip install 'promptmill[images]'` reads other programs', too."
        return {"written_by": "", "problem": f"{_NOBODY} {more}"}
    try:
        known = ParserManager().parse(picture)
    except Exception as error:  # noqa: BLE001 - a library reads what anybody wrote: it stumbles over anything
        return {"written_by": "", "problem": f"{_NOBODY} (sd-parsers: {error or type(error).__name__})."}
    finally:
        _asked_last[:] = [picture]
    if known is None:
        return {"written_by": "", "problem": f"{_NOBODY}."}
    fields: dict[str, Any] = {
        "prompt": known.full_prompt,
        "negative_prompt": known.full_negative_prompt or "",
        "other": {},
    }
    if known.samplers:
        sampler = known.samplers[0]
        asked = sampler.parameters
        numbers = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "seed": "seed"}
        fields |= {ours: asked[name] for ours, name in numbers.items() if name in asked}
        if sampler.model and sampler.model.name:
            fields["model"] = sampler.model.name
        try:
            fields["sampler"] = resolve_sampler(sampler.name)[0]
        except BadInputError:
            fields["other"]["Sampler"] = sampler.name
    return {"written_by": str(getattr(known.generator, "value", known.generator)), "fields": fields}
