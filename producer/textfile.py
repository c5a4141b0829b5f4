"""Read a text file of prompts: one a line, UTF-8, blank lines and lines that start with `#` skipped."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

LONGEST_LINE = 2**17  # characters held at once; a prompt has at most 10,000
_OPTION = re.compile(r"(?:^|\s)(--[A-Za-z][\w-]*)")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_UTF16_MARKS = ("\udcff\udcfe", "\udcfe\udcff")  # its byte order marks, as the escapes below show them


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLine:
    """One line of a text file: its stripped text, or the reason why it cannot be used."""

    line: int
    text: str = ""
    column: int | None = None
    reason: str | None = None


def read_text(file: BinaryIO) -> Iterator[TextLine]:
    """Yield the prompts of a text file with any newline, with or without a byte order mark.

    A line that cannot be used does not end the reading, so that all of them can be reported at once. Memory
    stays flat whatever the size of the file.
    """
    # Bytes that are not UTF-8 come through as lone surrogates, which leaves the other lines readable.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=None)
    number = 0
    try:
        while raw := text.readline(LONGEST_LINE):
            number += 1
            if number == 1 and raw.startswith(_UTF16_MARKS):
                yield TextLine(line=1, reason="the file is UTF-16; save it as UTF-8.")
                return
            if len(raw) == LONGEST_LINE and not raw.endswith("\n"):
                _skip_line(text)
                yield TextLine(
                    line=number, reason=f"the line has over {LONGEST_LINE:,} characters; split it."
                )
            elif (stripped := raw.strip()) and not stripped.startswith("#"):
                yield _judge(number, raw, stripped)
    finally:
        text.detach()  # standard input is not ours to close


def check_options(text: str) -> str | None:
    """Return why a prompt with something that looks like an option cannot be used; None if it has none.

    An option that is not known is never silently part of the prompt.
    """
    found = _OPTION.search(text)
    if found is None:
        return None
    return (
        f"{found[1]} looks like an option, and this version reads none from prompts; set it for all with the "
        f"command's own flags, or put a space after the dashes."
    )


def _skip_line(text: io.TextIOWrapper) -> None:
    while (more := text.readline(LONGEST_LINE)) and not more.endswith("\n"):
        pass


def _judge(number: int, raw: str, stripped: str) -> TextLine:
    if bad := _ESCAPED_BYTE.search(raw):
        byte = ord(bad[0]) - 0xDC00
        return TextLine(
            line=number,
            column=bad.start() + 1,
            reason=f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8, or convert it, for example from "
            f"Latin-1 with `iconv -f LATIN1 -t UTF-8`.",
        )
    if option := _OPTION.search(raw):
        return TextLine(line=number, column=option.start(1) + 1, reason=check_options(raw))
    return TextLine(line=number, text=stripped)
