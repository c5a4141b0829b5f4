"""How commands print: data on stdout, remarks on stderr, tables on a terminal, JSON when asked for it."""

from __future__ import annotations

import functools
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import click

from storage.status_object import JSON_VERSION

NEVER_FOLDED = 9  # characters: wider columns of a table give way on a narrow terminal
Row = Mapping[str, Any]
_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


def listing(
    key: str,
    columns: Mapping[str, str],
    *,
    empty: str,
    short: Mapping[str, Callable[[str], str]] | None = None,
) -> Callable[[Callable[..., Iterable[Row]]], Callable[..., None]]:
    """Make a command of a function that returns rows: it prints a table, or JSON with `--json`.

    Args:
        key: name of the list in the JSON object.
        columns: which keys of a row the table shows, with their titles; JSON has all of them. `a.b` is the
            value of `b` in the mapping `a`.
        empty: what to say on stderr when there are no rows.
        short: for keys whose values are longer than anybody reads: what the table shows instead.
    """
    shortened = short or {}

    def decorate(function: Callable[..., Iterable[Row]]) -> Callable[..., None]:
        @_json_option
        @functools.wraps(function)
        def command(*args: Any, as_json: bool, **kwargs: Any) -> None:
            rows = list(function(*args, **kwargs))
            if as_json:
                print_json({key: rows})
            elif rows:
                cells = [[shortened.get(name, str)(cell(_at(row, name))) for name in columns] for row in rows]
                print_table(list(columns.values()), cells)
            else:
                remark(empty)

        return command

    return decorate


def _at(row: Row, name: str) -> Any:
    outer, dot, inner = name.partition(".")
    return row.get(outer, {}).get(inner) if dot else row.get(name)


def record(key: str) -> Callable[[Callable[..., Row]], Callable[..., None]]:
    """Make a command of a function that returns one row: it prints its fields, or JSON with `--json`."""

    def decorate(function: Callable[..., Row]) -> Callable[..., None]:
        @_json_option
        @functools.wraps(function)
        def command(*args: Any, as_json: bool, **kwargs: Any) -> None:
            row = function(*args, **kwargs)
            if as_json:
                print_json({key: row})
            else:
                print_fields(row)

        return command

    return decorate


def print_json(content: Row) -> None:
    """Print one JSON object with the version of its layout."""
    click.echo(json.dumps({"version": JSON_VERSION, **content}, ensure_ascii=False, default=str))


def print_fields(row: Row) -> None:
    """Print one field a line; what is not known is left out."""
    known = {
        name.replace("_", " "): cell(value) for name, value in row.items() if value not in (None, "", [], {})
    }
    width = max(map(len, known), default=0)
    for name, text in known.items():
        click.echo(f"{name:<{width}}  {text}")


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    """Print a table: fitted to the terminal's width, or one whole row a line where no terminal is.

    Nothing is cut: long cells are folded, and where even that is too narrow each row is a block of lines.
    """
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        for row in (titles, *rows):
            line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            click.echo(line.rstrip())
        return
    from rich.cells import cell_len  # noqa: PLC0415  (0.1 s, and only a terminal needs it)
    from rich.console import Console  # noqa: PLC0415  (likewise)
    from rich.table import Table  # noqa: PLC0415  (likewise)
    from rich.text import Text  # noqa: PLC0415  (likewise)

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    least = 0
    for at, title in enumerate(titles):
        width = max(len(title), *(cell_len(row[at]) for row in rows))
        whole = at == 0 or width <= NEVER_FOLDED
        least += 2 + (width if whole else NEVER_FOLDED)
        table.add_column(title, overflow="fold", no_wrap=whole, min_width=width if whole else None)
    if least - 2 > console.width:
        click.echo("\n\n".join(_block(titles, row) for row in rows))
        return
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    console.print(table)


def _block(titles: list[str], row: list[str]) -> str:
    return "\n".join(f"{title}: {text}" for title, text in zip(titles, row, strict=True) if text)


def remark(text: str) -> None:
    """Say something that is no data: on stderr, or to whoever listens (`hearing`)."""
    heard = _HEARD.get()
    if heard is None:
        click.echo(printable(text), err=True)
    else:
        heard.append(printable(text))


@contextmanager
def hearing() -> Iterator[list[str]]:
    """Give a list that gets, instead of stderr, what is remarked in this thread meanwhile."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def cell(value: Any) -> str:
    """Write any value for people."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{name} {cell(item)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(map(cell, value))
        case _:
            return printable(str(value))


def printable(text: str) -> str:
    """Replace control characters: a prompt must not steer the terminal that shows it."""
    return "".join(
        f"\\x{ord(character):02x}" if unicodedata.category(character) == "Cc" else character
        for character in text.replace("\n", " ")
    )


def timestamp(moment: datetime | None) -> str | None:
    """Write a moment as ISO 8601 in UTC; None stays None."""
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None


def minute(moment: str) -> str:
    """Cut a timestamp for a table: `2026-01-31 23:59`."""
    return moment[:16].replace("T", " ")


def duration(seconds: float) -> str:
    """Write seconds as people say them: `8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shorten(text: str, length: int = 60) -> str:
    """Cut a text for a table."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def count_of(number: int, noun: str) -> str:
    """Write `1 job`, `1,632 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size_of(count: int) -> str:
    """Write a number of bytes as people read it: `512 MiB`, `1.4 TiB`."""
    size, units = float(max(0, count)), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:  # noqa: PLR2004  (what the units are made of)
        size, units = size / 1024, units[1:]
    digits = 0 if units[0] == "bytes" or size >= 10 else 1  # noqa: PLR2004  (two digits say enough)
    return f"{size:.{digits}f} {units[0]}"
