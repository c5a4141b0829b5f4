"""Of which kind a column's values are, so that every row of every shard has the same one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from storage.parameters import MAX_SEED

Columns = dict[str, "Kind"]


class Kind(StrEnum):
    """A kind of values that JSON, CSV and Arrow all know."""

    UNKNOWN = "unknown"  # nobody has a value
    BOOL = "bool"
    INT = "int"  # of 64 bits
    FLOAT = "float"
    LIST = "list"  # of anything, written as JSON where a table has no such thing
    OBJECT = "object"  # likewise
    TEXT = "text"  # also where values of several kinds meet


def kind_of(value: Any) -> Kind:  # noqa: PLR0911  (one for each kind)
    """Return a value's own kind."""
    match value:
        case None:
            return Kind.UNKNOWN
        case bool():
            return Kind.BOOL
        case int():
            return Kind.INT if -MAX_SEED - 1 <= value <= MAX_SEED else Kind.TEXT
        case float():
            return Kind.FLOAT
        case list() | tuple():
            return Kind.LIST
        case Mapping():
            return Kind.OBJECT
        case _:
            return Kind.TEXT


def joined(one: Kind, other: Kind) -> Kind:
    """Return the kind that holds values of two."""
    if one is other or other is Kind.UNKNOWN:
        return one
    if one is Kind.UNKNOWN:
        return other
    return Kind.FLOAT if {one, other} == {Kind.INT, Kind.FLOAT} else Kind.TEXT


def add_row(columns: Columns, row: Mapping[str, Any]) -> None:
    """Take a row's values into account, in place; new columns come last."""
    for name, value in row.items():
        known = columns.get(name)
        kind = kind_of(value)
        if known is not kind:
            columns[name] = kind if known is None else joined(known, kind)


def fitted(value: Any, kind: Kind) -> Any:
    """Return a value as its column's kind has it."""
    if value is None:
        return None
    if kind is Kind.FLOAT:
        return float(value)
    if kind is Kind.TEXT and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def flat(value: Any, kind: Kind) -> Any:
    """Return a value as a table of plain columns has it: lists and objects as JSON."""
    if value is not None and kind in (Kind.LIST, Kind.OBJECT):
        return json.dumps(value, ensure_ascii=False)
    return fitted(value, kind)


def same_columns(row: Mapping[str, Any], columns: Mapping[str, Kind]) -> dict[str, Any]:
    """Return a row with a value, or None, for every column, in their order."""
    return {name: fitted(row.get(name), kind) for name, kind in columns.items()}


def ordered(columns: Mapping[str, Kind], first: Iterable[str]) -> Columns:
    """Return columns with these ahead of the others."""
    ahead = {name: columns[name] for name in first if name in columns}
    return ahead | {name: kind for name, kind in columns.items() if name not in ahead}
