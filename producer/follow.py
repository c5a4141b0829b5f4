"""Follow a submission until it is done: what `watch`, `wait`, `submit --wait` and `render` have in common."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from producer.output import count_of, duration, printable, remark, shorten, timestamp
from storage.errors import PromptmillError, WaitTimeoutError
from storage.jobstore import JobStore
from storage.records import JobStatus, Status
from storage.status_object import waiting_because

POLL_INTERVAL = 0.5  # seconds; heartbeats write once a second
PLAIN_INTERVAL = 5.0  # seconds between two lines where no terminal shows a bar
SHOWN_REASONS = 3


class SomeFailedError(PromptmillError):
    """A submission is done, and some of its jobs have no picture."""

    exit_code = 1


class Display(Protocol):
    """Shows progress on stderr."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, status: Status) -> None:
        """Show where the submission is now."""
        ...


def follow(
    store: JobStore,
    submission: str,
    *,
    lease: float,
    timeout: float | None = None,
) -> Iterator[Status]:
    """Yield a submission's status twice a second until it is done.

    Args:
        store: the job store.
        submission: its id.
        lease: seconds without a heartbeat until a worker counts as dead.
        timeout: seconds until WaitTimeoutError.

    Raises:
        WaitTimeoutError: when `timeout` runs out first.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        began = time.monotonic()
        status = store.status(submission, lease=lease)
        yield status
        if status.done:
            return
        now = time.monotonic()
        # Counting a million rows takes a moment: never keep the database busy with being watched.
        rest = max(POLL_INTERVAL, 5 * (now - began))
        if deadline is not None:
            if now >= deadline:
                raise WaitTimeoutError(
                    f"Submission {submission} is not done after {timeout:g} s: {status.unfinished} of "
                    f"{status.submission.total} jobs are left; wait again, or see "
                    f"`promptmill status {submission}`."
                )
            rest = min(rest, deadline - now)
        time.sleep(rest)


def unlucky(status: Status) -> list[str]:
    """Say how many jobs ended without a picture, by how; nothing where none did."""
    numbers = {end: status.counts.get(end, 0) for end in (JobStatus.FAILED, JobStatus.CANCELLED)}
    return [f"{number} {end}" for end, number in numbers.items() if number]


def one_line(status: Status) -> str:
    """Say in one line how far a submission is."""
    finished = status.submission.total - status.unfinished
    parts = [f"{status.submission.id}  {finished}/{status.submission.total} finished"]
    parts += unlucky(status)
    if status.images_per_second:
        parts.append(f"{status.images_per_second:.2f} images/s")
    if status.eta_seconds is not None and status.unfinished:
        parts.append(f"{duration(status.eta_seconds)} left")
    if because := waiting_because(status):
        parts.append(because)
    return ", ".join(parts)


def check_all_succeeded(store: JobStore, status: Status) -> None:
    """Raise SomeFailedError if a done submission has jobs without a picture, with the first reasons."""
    submission = status.submission.id
    failed = status.counts.get(JobStatus.FAILED, 0)
    cancelled = status.counts.get(JobStatus.CANCELLED, 0)
    if not failed + cancelled:
        return
    reasons = "".join(
        f"\n  {job.label}  {shorten(printable(job.error_message or job.error_type or ''), 200)}"
        for job in store.jobs(submission, statuses=(JobStatus.FAILED,), limit=SHOWN_REASONS)
    )
    what = " and ".join(
        f"{number:,} {word}" for number, word in ((failed, "failed"), (cancelled, "were cancelled")) if number
    )
    more = f"\n  … and {failed - SHOWN_REASONS:,} more" if failed > SHOWN_REASONS else ""
    raise SomeFailedError(
        f"Of {count_of(status.submission.total, 'job')} {what}; `promptmill retry {submission}` brings them "
        f"back.{reasons}{more}"
    )


def display(*, title: str | None = None) -> Display:
    """Return a live bar where stderr is a terminal that can redraw a line, else plain lines now and then."""
    if _shows_bars():
        from producer.bar import Bar  # noqa: PLC0415  (rich takes 0.1 s)

        return Bar(title=title)
    return PlainLines()


@contextmanager
def counting(total: int, *, title: str) -> Iterator[Callable[[int], None]]:
    """Give a function to be told how many more of `total` are done; a terminal shows a bar meanwhile."""
    if not _shows_bars():
        yield lambda _more: None
        return
    from producer.bar import counting_bar  # noqa: PLC0415  (rich takes 0.1 s)

    with counting_bar(total, title=title) as done:
        yield done


def _shows_bars() -> bool:
    moves = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")  # there a bar would show nothing
    return sys.stderr is not None and sys.stderr.isatty() and moves


class PlainLines:
    """One line every few seconds, and whenever the reason for waiting changes."""

    def __init__(self, *, interval: float = PLAIN_INTERVAL) -> None:
        self._interval = interval
        self._next = 0.0
        self._because: str | None = None
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def update(self, status: Status) -> None:
        """See `Display.update`."""
        now = time.monotonic()
        line = one_line(status)
        due = now >= self._next or status.done or status.waiting_because != self._because
        if due and line != self._line:
            remark(line)
            self._next, self._because, self._line = now + self._interval, status.waiting_because, line


def submission_fields(status: Status) -> dict[str, Any]:
    """Return what a person wants to know of a submission beyond `status_fields`."""
    submission = status.submission
    return {
        "created": timestamp(submission.created_at),
        "source": submission.source,
        "priority": submission.priority or None,
        "weight": submission.weight if submission.weight != 1 else None,
        "max_running": submission.max_running,
        "reuse": submission.reuse or None,
        "note": submission.note,
    }
