"""What JSON Lines and JSON share: how a value is decoded, and how it becomes a line."""

from __future__ import annotations

import json
from typing import Any

from producer.lines import Line, Problem
from producer.readers.columns import Columns
from producer.readers.kinds import UnfitError, shown

MOST_SHAPES = 1000  # lists of keys remembered


def decoder() -> json.JSONDecoder:
    """Return a decoder that refuses what two readers of JSON would read differently."""
    return json.JSONDecoder(object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | UnfitError:
    """Make an object; an error takes the place of one that cannot be used, so that decoding goes on."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return UnfitError(f"the key {shown(twice)} is there twice; remove one.")
    return found


def syntax_reason(error: Exception) -> str:
    """Say why a text is no JSON that can be used."""
    if isinstance(error, json.JSONDecodeError):
        return f"this is no JSON ({error.msg[:1].lower()}{error.msg[1:]}); correct it."
    if isinstance(error, RecursionError):
        return "this is nested too deeply; flatten it."
    return "it has a number of thousands of digits; put it in quotes."


class Entries:
    """Make lines of the entries of one file; the columns are looked up once for each list of keys."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._shapes: dict[tuple[str, ...], Columns] = {}

    def line(self, value: Any, number: int) -> Line | Problem | None:
        """Return the line of an entry: an object by its keys, or a text; None where it says nothing."""
        if isinstance(value, str):
            value = {"prompt": value}
        if isinstance(value, UnfitError):
            return Problem(file=self._file, line=number, reason=str(value))
        if not isinstance(value, dict):
            reason = f"an entry has to be an object or a text, not {shown(value)}; correct it."
            return Problem(file=self._file, line=number, reason=reason)
        try:
            columns = self._columns(tuple(value))
        except UnfitError as unfit:
            return Problem(file=self._file, line=number, reason=str(unfit))
        found = columns.line(tuple(value.values()), file=self._file, number=number)
        if found is None and value:
            reason = "the prompt is empty; give it at least one word."
            return Problem(file=self._file, line=number, reason=reason)
        return found

    def _columns(self, keys: tuple[str, ...]) -> Columns:
        columns = self._shapes.get(keys)
        if columns is None:
            if len(self._shapes) >= MOST_SHAPES:  # keys that differ everywhere
                self._shapes.clear()
            columns = self._shapes[keys] = Columns(keys, numbered=False)
        return columns
