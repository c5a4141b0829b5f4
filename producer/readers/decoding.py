"""Lines of UTF-8 text, however long the file and whatever its bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from producer.lines import Problem

LONGEST_LINE = 2**17  # characters held at once; a prompt has at most 10,000
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@contextmanager
def decoded(file: BinaryIO) -> Iterator[io.TextIOWrapper]:
    """Give a file as text: any newline, with or without a byte order mark; it is left open.

    Bytes that are not UTF-8 come through as lone surrogates, which leaves the other lines readable.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=None)
    try:
        yield text
    finally:
        text.detach()  # standard input is not ours to close


def numbered_lines(text: io.TextIOWrapper) -> Iterator[tuple[int, str | None]]:
    """Yield each line with its number, from 1; None stands for one that is longer than `LONGEST_LINE`."""
    number = 0
    while raw := text.readline(LONGEST_LINE):
        number += 1
        if len(raw) == LONGEST_LINE and raw[-1] != "\n":
            while (more := text.readline(LONGEST_LINE)) and more[-1] != "\n":
                pass
            yield number, None
        else:
            yield number, raw


def too_long(file: str, line: int, what: str = "line") -> Problem:
    """Say that a line was not read."""
    return Problem(file=file, line=line, reason=f"the {what} has over {LONGEST_LINE:,} characters; split it.")


def bad_byte(text: str) -> tuple[int, str] | None:
    """Return where the first byte is that is not UTF-8, from 0, and the reason; None without one."""
    if text.isascii() or (bad := _ESCAPED_BYTE.search(text)) is None:
        return None
    return bad.start(), (
        f"byte 0x{ord(bad[0]) - 0xDC00:02x} is not UTF-8; save the file as UTF-8, or convert it, for example "
        f"from Latin-1 with `iconv -f LATIN1 -t UTF-8`."
    )
