"""Read JSON Lines: an object, or a text that is the prompt, on each line."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO

from producer.lines import Line, Problem
from producer.readers.decoding import bad_byte, decoded, numbered_lines, too_long
from producer.readers.entries import Entries, decoder, syntax_reason


def read_json_lines(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read one entry a line; a line that is none does not end the reading."""
    decode, entries = decoder().decode, Entries(name)
    with decoded(file) as text:
        for number, raw in numbered_lines(text):
            if raw is None:
                yield too_long(name, number)
            elif not raw.isspace():
                if (bad := bad_byte(raw)) is not None:
                    yield Problem(file=name, line=number, column=bad[0] + 1, reason=bad[1])
                    continue
                try:
                    value = decode(raw)
                except JSONDecodeError as error:
                    reason = syntax_reason(error)
                    yield Problem(file=name, line=number, column=error.pos + 1, reason=reason)
                except (RecursionError, ValueError) as error:
                    yield Problem(file=name, line=number, reason=syntax_reason(error))
                else:
                    if (line := entries.line(value, number)) is not None:
                        yield line
