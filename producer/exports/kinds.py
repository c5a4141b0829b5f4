"""Of which kind a column's values are, so that every row of every shard has the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


_KINDS: dict[type, Kind] = {
    type(None): Kind.UNKNOWN, bool: Kind.BOOL, float: Kind.FLOAT, str: Kind.TEXT, list: Kind.LIST,
    tuple: Kind.LIST, dict: Kind.OBJECT,
}  # fmt: skip


def kind_of(value: Any) -> Kind:
    """Return a value's own kind."""
    if type(value) is int:
        return Kind.INT if -MAX_SEED - 1 <= value <= MAX_SEED else Kind.TEXT
    return _KINDS.get(type(value), Kind.TEXT)


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
        known, kind = columns.get(name), kind_of(value)
        if known is not kind:
            columns[name] = kind if known is None else joined(known, kind)


def fitted(value: Any, kind: Kind) -> Any:
    """Return a value as its column's kind has it."""
    if kind is Kind.TEXT and type(value) is not str and value is not None:
        return json.dumps(value, ensure_ascii=False)
    if kind is Kind.FLOAT and value is not None:
        return float(value)
    return value


def flat(value: Any, kind: Kind) -> Any:
    """Return a value as a table of plain columns has it: lists and objects as JSON."""
    if value is not None and kind in (Kind.LIST, Kind.OBJECT):
        return json.dumps(value, ensure_ascii=False)
    return fitted(value, kind)


def same_columns(row: Mapping[str, Any], columns: Mapping[str, Kind]) -> dict[str, Any]:
    """Return a row with a value, or None, for every column, in their order."""
    return {name: fitted(row.get(name), kind) for name, kind in columns.items()}
