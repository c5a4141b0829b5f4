"""Hold a picture against another one: its bytes, its pixels, and what the numerics records say."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from storage.errors import BadInputError
from storage.picture_metadata import INFOTEXT, read_texts
from storage.picture_record import RECORD

PEAK = 255  # the largest difference that 8-bit pixels can have
SHOWN = 12  # characters of a hash or commit: more than these nobody reads
_HASH = re.compile(r"[0-9a-f]{40,}")


class Outcome(StrEnum):
    """How alike two renders of the same job are."""

    BYTES = "byte-identical"
    PIXELS = "pixel-identical"  # the same picture in other bytes
    DIFFERENT = "different"
    NONE = "not rendered"  # there is nothing to compare with


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """What a comparison found.

    Attributes:
        outcome: in a word.
        max_difference: of any channel of any pixel, 0 to 255; None where nobody can say.
        psnr_db: peak signal-to-noise ratio over all channels, in dB; None for equal pixels, or likewise.
        texts: keys of the texts in the two files that differ.
        detail: what else there is to say.
    """

    outcome: Outcome
    max_difference: int | None = None
    psnr_db: float | None = None
    texts: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One value of the numerics record that is not what it was."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """As a line for people: `lanes: 8 → 4`."""
        return f"{self.name}: {_said(self.before)} → {_said(self.after)}"


def compare(old: bytes, new: bytes) -> Likeness:
    """Compare two picture files.

    Raises:
        BadInputError: when one of them is no picture that can be decoded.
    """
    if old == new:
        return Likeness(outcome=Outcome.BYTES)
    from PIL import ImageChops, ImageStat  # noqa: PLC0415  (only pictures need it)

    (before, before_texts), (after, after_texts) = _decoded(old), _decoded(new)
    if before.size != after.size:
        sizes = f"{after.width}x{after.height} instead of {before.width}x{before.height}"
        return Likeness(outcome=Outcome.DIFFERENT, detail=sizes)
    texts = tuple(
        key
        for key in sorted(before_texts.keys() | after_texts.keys())
        if before_texts.get(key) != after_texts.get(key)
    )
    difference = ImageChops.difference(before, after)
    statistics = ImageStat.Stat(difference)
    largest = max(int(high) for _, high in statistics.extrema)
    if not largest:
        return Likeness(outcome=Outcome.PIXELS, max_difference=0, texts=texts)
    error = sum(statistics.sum2) / (len(statistics.sum2) * before.width * before.height)
    psnr = 10 * math.log10(PEAK**2 / error)
    return Likeness(outcome=Outcome.DIFFERENT, max_difference=largest, psnr_db=psnr, texts=texts)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return what differs between two numerics records, one value each; `versions.torch` for nested ones."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        Change(name=name, before=old.get(name), after=new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs


def _said(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return f"{text[:SHOWN]}…" if _HASH.fullmatch(text) else text


def _decoded(data: bytes) -> tuple[Any, dict[str, str]]:
    """Return a file's picture in RGB, and the texts beside it."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only pictures need it)

    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = picture.convert("RGB")
            texts = {str(key): str(value) for key, value in getattr(picture, "text", {}).items()}
            said = read_texts(picture)  # also where JPEG and WebP keep them
            texts |= {INFOTEXT: said.infotext, RECORD: said.record}
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadInputError("The file is no picture that can be compared.") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise BadInputError(f"The picture cannot be decoded ({error}).") from error
    return pixels, texts
