"""Tell the format of a prompt file by its head; what its name says decides only what could be either."""

from __future__ import annotations

import re
from dataclasses import dataclass
from json import JSONDecodeError

from producer.readers.columns import FIELDS, field_of
from producer.readers.delimited import DELIMITERS, header_fields
from producer.readers.entries import decoder
from producer.readers.rejoined import HEAD

SUFFIXES = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
PARQUET = b"PAR1"
# What a file begins with that is something else: the bytes, what it is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xfe\0\0", "UTF-32", "save it as UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32", "save it as UTF-8"),
    (b"\xff\xfe", "UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8"),
    (b"\x1f\x8b", "packed with gzip", "unpack it with `gunzip`"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"PK\x05\x06", "an empty zip archive", "name the prompt file itself"),
    (b"BZh", "packed with bzip2", "unpack it with `bunzip2`"),
    (b"\xfd7zXZ\0", "packed with xz", "unpack it with `unxz`"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it with `unzstd`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "save it as CSV or text"),
    (b"%PDF-", "a PDF", "save its text"),
    (b"\x89PNG\r\n", "a PNG picture", "name a prompt file"),
    (b"\xff\xd8\xff", "a JPEG picture", "name a prompt file"),
    (b"GIF8", "a GIF picture", "name a prompt file"),
    (b"SQLite format 3\0", "an SQLite database", "export a table as CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"\x7fELF", "a program", "name a prompt file"),
    (b"\x80\x04\x95", "a Python pickle", "write it as JSON Lines"),
)  # fmt: skip
_LIST = re.compile(r'\[\s*(?:["{]|\]\s*$)')
_OBJECT = re.compile(r'\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected:
    """A format, or the reason why the file has none that can be read."""

    format: str = "text"
    reason: str | None = None


def detect_format(head: bytes, *, suffix: str = "", input_format: str | None = None) -> Detected:
    """Return the format of a file.

    Args:
        head: the file's first bytes.
        suffix: of its name.
        input_format: what the user says that it is, which is checked only for what it cannot be.
    """
    named = SUFFIXES.get(suffix.lower())
    if (reason := _contradiction(head, input_format, named)) is not None:
        return Detected(reason=reason)
    if head.startswith(PARQUET) or input_format is not None:
        return Detected(format=input_format or "parquet")
    seen = _by_content(head, one_column=named != "text")
    if named in ("csv", "tsv") or (named is not None and seen is None):
        return Detected(format=named)
    if named == "jsonl" and not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):  # not a list
        return Detected(format=named)
    if seen is None and suffix:
        return Detected(
            reason=f"a name that ends in {suffix} and the content do not tell the format; say it with "
            f"--input-format, text for one prompt a line."
        )
    return Detected(format=seen or "text")


def _contradiction(head: bytes, input_format: str | None, named: str | None) -> str | None:
    """Say why a file cannot be what it is said to be; None if it may."""
    if head.startswith(PARQUET):
        if input_format in (None, "parquet"):
            return None
        return f"it is a Parquet file; leave --input-format {input_format} out."
    if (reason := _foreign(head)) is not None:
        return reason
    if (input_format or named) == "parquet":
        return "it does not begin as a Parquet file does; write it anew, or rename it."
    return None


def _foreign(head: bytes) -> str | None:
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            return f"the file is {what}; {remedy}."
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "the file is a WebP picture; name a prompt file."
    if b"\0" in head:
        return "the file holds NUL bytes, so it is UTF-16 or no text at all; save it as UTF-8 text."
    return None


def _by_content(head: bytes, *, one_column: bool) -> str | None:
    """Return the format that the head shows beyond doubt, which is never text; None if it could be that.

    Args:
        head: the file's first bytes.
        one_column: whether a first line that is only `prompt` makes a table.
    """
    text = head.decode("utf-8-sig", "replace").lstrip()
    if _OBJECT.match(text) or _LIST.match(text):
        return _json_kind(text, whole=len(head) < HEAD)
    first, _, rest = text.partition("\n")
    first = first.rstrip("\r")
    if not one_column and field_of(first) is not None:
        return None
    return next(
        ("tsv" if mark == "\t" else "csv" for mark in DELIMITERS if _is_header(first, rest, mark)), None
    )


def _json_kind(text: str, *, whole: bool) -> str | None:
    """Tell JSON Lines, one value a line, from other JSON, and both from a prompt like `["x"] y`."""
    try:
        _, end = decoder().raw_decode(text)
    except JSONDecodeError:
        # A list is longer than the head, or broken; so is an object, and text has no `{"key":`.
        return "json" if text[0] == "{" or not whole else _broken_list(text)
    except (RecursionError, ValueError):
        return "json"
    rest = text[end:].lstrip()
    if text[0] == "[":
        return "json" if not rest else None
    return (
        "json" if "\n" in text[:end] or (rest and not text[end:].lstrip(" \r").startswith("\n")) else "jsonl"
    )


def _broken_list(text: str) -> str | None:
    try:
        _, end = decoder().raw_decode(text[1:].lstrip())
    except (JSONDecodeError, RecursionError, ValueError):
        return "json" if re.match(r'\[\s*(\{\s*"|")', text) else None
    return "json" if text[1:].lstrip()[end:].lstrip()[:1] == "," else None


def _is_header(first: str, rest: str, mark: str) -> bool:
    """Whether a first line is a table's header, and not a prompt with commas in it."""
    fields = header_fields(first, mark)
    if "prompt" not in fields:
        return False
    cells = [cell.strip().strip('"').casefold() for cell in first.split(mark)]
    sure = mark == "\t" or not {"prompt", "prompts"}.isdisjoint(cells) or None not in fields
    if len(cells) == 1:
        return cells[0] in ("prompt", "prompts") and mark == "," and bool(rest.strip())
    return sure and all(len(cell) <= max(map(len, FIELDS)) * 4 for cell in cells)
