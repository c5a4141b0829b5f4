"""The lines of a table for `csv.reader`, counted row by row and given back where a row went wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from producer.readers.decoding import LONGEST_LINE, bad_byte

MOST_READ_AGAIN = 2**23  # characters; broken quotes on every line would cost the square of their number


class LineTooLongError(Exception):
    """A line was skipped."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class RowTooLongError(Exception):
    """A row has gone on over lines for too long: one of its quotation marks is not closed."""


class RowLines:
    """An iterator over physical lines that knows those of the row being read.

    Unlike a generator, it goes on after it has raised.

    Attributes:
        first: number of the row's first line; of the line before, while it has none.
        unclean: whether the row has bytes that are not UTF-8.
    """

    def __init__(self, lines: Iterator[tuple[int, str | None]]) -> None:
        self._lines = lines
        self._again: deque[tuple[int, str | None]] = deque()
        self._row: list[tuple[int, str]] = []
        self._size = 0
        self._read_again = 0
        self.first = 0
        self.unclean = False

    def begin(self) -> None:
        """Begin a row."""
        self._row.clear()
        self._size = 0
        self.unclean = False

    def peek(self) -> str:
        """Return the first line that is not blank, which will still be read; "" where there is none."""
        for number, raw in self._lines:
            if raw is None or not raw.isspace():
                self._again.append((number, raw))
                return raw or ""
        return ""

    def give_back(self) -> bool:
        """Have all lines of the row but the first read again; False where that has been too much."""
        rest = self._row[1:]
        self._again.extendleft(reversed(rest))
        self._read_again += sum(len(raw) for _, raw in rest)
        return self._read_again <= MOST_READ_AGAIN

    def __iter__(self) -> RowLines:
        return self

    def __next__(self) -> str:
        number, raw = self._again.popleft() if self._again else next(self._lines)
        if raw is None:
            raise LineTooLongError(number)
        if not self._row:
            self.first = number
        self._row.append((number, raw))
        self._size += len(raw)
        if self._size > LONGEST_LINE:
            raise RowTooLongError
        if not raw.isascii() and bad_byte(raw) is not None:
            self.unclean = True
        return raw
