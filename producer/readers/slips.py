"""Columns that are kept with the jobs although their names look like slips of one that means something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from producer.lines import Line
from producer.readers.columns import CONVERTERS, FIELDS
from producer.readers.kinds import UnfitError, shown

SHORTEST = 4  # letters of a name in which a slip can be told from another word
MOST_NAMES = 1_000  # of one file; a file that has more has no columns
_BETWEEN = re.compile(r"[\W_]+")


class Slips:
    """Says of each unknown column once, at its first value, what it may have been meant for."""

    def __init__(self) -> None:
        self._file = ""
        self._seen: set[str] = set()

    def of(self, line: Line) -> Iterator[str]:
        """Yield a remark for each column of a line that was not seen before in its file and is a slip."""
        if line.file != self._file:
            self._file, self._seen = line.file, set()
        if line.extra.keys() <= self._seen or len(self._seen) >= MOST_NAMES:
            return
        for name, value in line.extra.items():
            if name not in self._seen and (meant := _meant(name, value)):
                yield (
                    f"{line.file}: column {shown(name)} is not known and kept as extra; did you mean {meant}?"
                )
        self._seen |= line.extra.keys()


def _meant(name: str, value: Any) -> str | None:
    """Return the known name that a column's is a slip of, if its value would do there."""
    written = _letters(name)
    for known, field in FIELDS.items():
        if _is_slip(written, _letters(known)):
            try:
                CONVERTERS[field](name, value)
            except UnfitError:
                continue
            return known
    return None


def _letters(name: str) -> str:
    return _BETWEEN.sub("", name.casefold())


def _is_slip(written: str, known: str) -> bool:
    """Tell whether one letter is too many, missing, another or swapped with the next; never the first.

    In a short word another letter makes another word: test is no slip of text.
    """
    if written == known:
        return True
    if len(known) < SHORTEST or written[:1] != known[:1]:
        return False
    same = _alike(written, known)
    here, there = written[same:], known[same:]
    end = _alike(here[::-1], there[::-1])
    here, there = here[: len(here) - end], there[: len(there) - end]
    swapped = len(here) == 2 and here == there[::-1]  # noqa: PLR2004  (the two letters)
    return len(here + there) == 1 or swapped or (len(here) == len(there) == 1 and len(known) > SHORTEST)


def _alike(one: str, other: str) -> int:
    """Return how many letters two words have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
