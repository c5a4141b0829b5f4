"""Read CSV and TSV: a header, then a row for each prompt."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from producer.lines import Line, Problem
from producer.readers.columns import Columns, field_of
from producer.readers.decoding import bad_byte, decoded, numbered_lines, too_long
from producer.readers.kinds import UnfitError
from producer.readers.row_lines import LineTooLongError, RowLines, RowTooLongError

DELIMITERS = (",", "\t", ";")  # a spreadsheet writes ; where the comma is in numbers
_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}
_QUOTED = re.compile('"(?:[^"]|"")*"')


def read_csv(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read CSV; what stands between the cells is what makes a cell of the header the prompt's."""
    with decoded(file) as text:
        lines = RowLines(numbered_lines(text))
        header = lines.peek()
        delimiter = next((each for each in DELIMITERS if "prompt" in header_fields(header, each)), ",")
        yield from _read(lines, name, delimiter, quoted=delimiter != "\t" or _all_quoted(header))


def read_tsv(file: BinaryIO, name: str) -> Iterator[Line | Problem]:
    """Read TSV: quotes are letters like any other, unless the header's cells are all in quotes."""
    with decoded(file) as text:
        lines = RowLines(numbered_lines(text))
        yield from _read(lines, name, "\t", quoted=_all_quoted(lines.peek()))


def header_fields(line: str, delimiter: str) -> list[str | None]:
    """Return what the cells of a line are to a job if it is a header; None for an unknown one."""
    return [field_of(cell.strip().strip('"')) for cell in line.split(delimiter)]


def _all_quoted(header: str) -> bool:
    return all(_QUOTED.fullmatch(cell.strip()) for cell in header.split("\t"))


def _read(lines: RowLines, name: str, delimiter: str, *, quoted: bool) -> Iterator[Line | Problem]:
    columns: Columns | None = None
    for row in _rows(lines, name, delimiter) if quoted else _plain_rows(lines, name):
        if isinstance(row, Problem):
            yield row
            if columns is None:
                return
            continue
        number, cells = row
        if lines.unclean and (problem := _bad_cell(cells, name, number)) is not None:
            yield problem
            if columns is None:
                return
        elif columns is not None:
            if len(cells) != len(columns.names):
                yield _wrong_count(cells, columns, file=name, line=number, delimiter=delimiter)
            elif (line := columns.line(cells, file=name, number=number)) is not None:
                yield line
        else:
            try:
                columns = Columns(cells)
            except UnfitError as unfit:
                yield Problem(file=name, line=number, column=unfit.column, reason=str(unfit))
                return


def _rows(lines: RowLines, name: str, delimiter: str) -> Iterator[tuple[int, list[str]] | Problem]:
    """Yield rows with the number of their first line; what cannot be a row is read again line by line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except LineTooLongError as error:
            yield too_long(name, error.line)
            continue
        except (csv.Error, RowTooLongError):
            yield Problem(
                file=name,
                line=lines.first,
                reason='the quotation marks of this row do not match; put a cell that has some in "…", and '
                "write each of its own twice.",
            )
            if not lines.give_back():
                reason = "too many quotation marks do not match; nothing after this line was read."
                yield Problem(file=name, line=lines.first, reason=reason)
                return
            continue
        if cells:
            yield lines.first, cells


def _plain_rows(lines: RowLines, name: str) -> Iterator[tuple[int, list[str]] | Problem]:
    while True:
        lines.begin()
        try:
            raw = next(lines)
        except StopIteration:
            return
        except LineTooLongError as error:
            yield too_long(name, error.line)
            continue
        if not raw.isspace():
            cells = raw.rstrip("\n").split("\t")
            yield lines.first, [_unquoted(cell) for cell in cells] if '""' in raw else cells


def _unquoted(cell: str) -> str:
    """Undo the quoting of a program that quotes where it must: a quoted cell with quotes doubled inside."""
    inner = cell[1:-1]
    return inner.replace('""', '"') if '""' in inner and _QUOTED.fullmatch(cell) else cell


def _bad_cell(cells: Sequence[str], name: str, number: int) -> Problem | None:
    for column, cell in enumerate(cells, 1):
        if (bad := bad_byte(cell)) is not None:
            return Problem(file=name, line=number, column=column, reason=bad[1])
    return None


def _wrong_count(cells: Sequence[str], columns: Columns, *, file: str, line: int, delimiter: str) -> Problem:
    reason = f"the row has {len(cells):,} cells and the header {len(columns.names):,}; "
    if len(cells) < len(columns.names):
        reason += f"add a {_NAMES[delimiter]} for each cell that is missing."
    elif delimiter == "\t":
        reason += "take the tabs out of its cells."
    else:
        reason += f'put a cell that holds a {_NAMES[delimiter]} in "…".'
    return Problem(file=file, line=line, reason=reason)
