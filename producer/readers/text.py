"""Read text: one prompt a line, blank lines and lines that start with `#` skipped.

A prompt may bring options, as kohya's scripts (` --n blurry` after it) or A1111's "Prompts from file" (a line
that starts with `--`) read them. An option that is not known is never silently part of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from producer.lines import Line, Problem
from producer.readers.a1111 import parse_a1111
from producer.readers.decoding import bad_byte, decoded, numbered_lines, too_long
from producer.readers.kinds import OPTION
from producer.readers.kohya import parse_kohya

Parse = Callable[[str, str, int], Line | Problem]


def read_text(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read prompts, and options of either kind where a line has some."""
    return _read(file, name, parse_line)


def read_kohya(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read prompts with kohya's options only."""
    return _read(file, name, parse_kohya)


def read_a1111(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read lines of A1111's options; a line without any is a prompt."""
    return _read(file, name, parse_a1111)


def parse_line(text: str, file: str, number: int) -> Line | Problem:
    """Make a line of one prompt with its options, of whichever kind they are."""
    return (parse_a1111 if OPTION.match(text.lstrip()) else parse_kohya)(text, file, number)


def _read(file: BinaryIO, name: str, parse: Parse) -> Iterator[Line | Problem]:
    with decoded(file) as text:
        for number, raw in numbered_lines(text):
            if raw is None:
                yield too_long(name, number)
            elif (stripped := raw.strip()) and stripped[0] != "#":
                if (bad := bad_byte(raw)) is not None:
                    yield Problem(file=name, line=number, column=bad[0] + 1, reason=bad[1])
                elif "--" in raw:
                    yield parse(raw, name, number)
                else:
                    yield Line(file=name, line=number, prompt=stripped)
