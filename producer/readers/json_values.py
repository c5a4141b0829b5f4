"""Read JSON: a list of texts or objects, one object, or several one after the other.

The values are decoded one by one out of a window on the file, so that memory stays flat whatever its size.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO

from producer.lines import Line, Problem
from producer.readers.decoding import LONGEST_LINE, bad_byte, decoded
from producer.readers.entries import Entries, decoder, syntax_reason
from producer.readers.kinds import UnfitError

CHUNK = 2**16  # characters
_REST = "; nothing after it was read."
_SPACE = re.compile(r"[ \t\n\r]*")


class _JsonError(Exception):
    """The file is no JSON from here on."""

    def __init__(self, reason: str, line: int, column: int | None = None) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column


def read_json(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read the entries of a list, or values one after the other."""
    entries = Entries(name)
    with decoded(file) as text:
        try:
            for number, value in _values(_Window(text)):
                if (found := entries.line(value, number)) is not None:
                    yield found
        except _JsonError as error:
            yield Problem(file=name, line=error.line, column=error.column, reason=str(error))


def _values(window: _Window) -> Iterator[tuple[int, Any]]:
    """Yield each value with the number of the line where it begins."""
    if window.next() != "[":
        while window.next():
            yield window.line, window.value()
        return
    window.skip()
    if window.next() == "]":
        window.skip()
    else:
        while True:
            window.next()
            yield window.line, window.value()
            if (mark := window.next()) not in (",", "]"):
                raise window.error("a comma or ] has to follow")
            window.skip()
            if mark == "]":
                break
    if window.next():
        raise window.error("something follows the end of the list")


class _Window:
    """The part of a text that is being decoded.

    Attributes:
        line: where it stands, from 1.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._decode = decoder().raw_decode
        self._held = ""
        self._at = 0
        self._ended = False
        self._column = 1
        self.line = 1

    def next(self) -> str:
        """Go to the next character that is no white space and return it; "" at the end."""
        while True:
            match = _SPACE.match(self._held, self._at)
            self._go(match.end() if match else self._at)
            if self._at < len(self._held):
                return self._held[self._at]
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Go past one character."""
        self._go(self._at + 1)

    def value(self) -> Any:
        """Return the value that begins here, or why it cannot be used, and go past it."""
        while True:
            try:
                value, end = self._decode(self._held, self._at)
                break
            except JSONDecodeError as error:
                if not self._ended:
                    if len(self._held) - self._at > LONGEST_LINE:
                        raise self._unread(error) from None
                    self._more()
                    continue
                raise self._unread(error) from None
            except (RecursionError, ValueError) as error:
                raise self.error(syntax_reason(error).partition(";")[0]) from None
        bad = bad_byte(self._held[self._at : end])
        self._go(end)
        return UnfitError(bad[1]) if bad else value

    def error(self, what: str) -> _JsonError:
        """Return an error about what stands here."""
        return _JsonError(what + _REST, self.line, self._column)

    def _unread(self, error: JSONDecodeError) -> _JsonError:
        if not self._ended and (error.msg.startswith("Unterm") or error.pos - self._at > LONGEST_LINE):
            return self.error(f"an entry has over {LONGEST_LINE:,} characters")
        self._go(error.pos)
        return self.error(syntax_reason(error).partition(";")[0])

    def _go(self, at: int) -> None:
        lines = self._held.count("\n", self._at, at)
        self.line += lines
        self._column = at - self._held.rfind("\n", 0, at) if lines else self._column + at - self._at
        self._at = at

    def _more(self) -> None:
        more = self._text.read(CHUNK)
        self._ended = not more
        self._held = self._held[self._at :] + more
        self._at = 0
