"""A progress bar over things that are counted, for commands that do not follow a submission."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def counted(items: Iterable[T], *, total: int, title: str) -> Iterator[T]:
    """Yield `items`; a bar on stderr says how many of `total` are done, where a terminal shows it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console  # noqa: PLC0415  (0.1 s, and only a terminal needs it)
    from rich.progress import track  # noqa: PLC0415  (likewise)

    yield from track(
        items, description=title, total=total, console=Console(stderr=True), transient=True
    )  # obeys NO_COLOR
