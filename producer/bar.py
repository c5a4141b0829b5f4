"""The live progress bar, on stderr of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from producer.follow import unlucky
from producer.output import duration, printable
from storage.records import Status
from storage.status_object import waiting_because


class Bar:
    """Finished of all jobs, images a second, time left, failures, and why nothing moves."""

    def __init__(self, *, title: str | None = None) -> None:
        self._title = title
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),  # leaves room for the remark in 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[remark]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=Console(stderr=True),  # obeys NO_COLOR
            expand=True,
        )
        self._bar = self._progress.add_task(title or "", total=None, remark="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def update(self, status: Status) -> None:
        """See `producer.follow.Display.update`."""
        submission = status.submission
        self._progress.update(
            self._bar,
            description=self._title or submission.name or submission.id,
            total=submission.total or None,
            completed=submission.total - status.unfinished,
            remark=_remark(status),
        )


@contextmanager
def counting_bar(total: int, *, title: str) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` are done and how long the rest takes; give a function to be told of more."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda more: progress.advance(bar, more)


def _remark(status: Status) -> str:
    parts = unlucky(status)
    if status.images_per_second:
        parts.append(f"{status.images_per_second:.2f} images/s")
    if status.eta_seconds is not None and status.unfinished:
        parts.append(f"{duration(status.eta_seconds)} left")
    elif because := waiting_because(status):
        parts.append(because)
    return printable(", ".join(parts))
