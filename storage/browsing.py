"""The part of the job store's contract that pages and lists need: a bounded look at much, by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.filters import JobFilter
from storage.records import Job, JobStatus, Status, Submission

PAGE_LIMIT = 200  # jobs or submissions of one page
LOOK_AT = 10_000  # jobs that one page may read to find those that a filter means


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPage:
    """Some jobs in the order that was asked for.

    Attributes:
        cursor: index of the job behind which the next page begins; None when there is no more.
        complete: False where LOOK_AT jobs were read and fewer than asked for were meant: there may be more.
    """

    jobs: list[Job]
    cursor: int | None
    complete: bool = True


class Browsing(Protocol):
    """Lists by page; see `storage.jobstore.JobStore`."""

    def newest(self, *, before: int | None = None, limit: int = 50) -> list[Submission]:
        """Return the newest submissions, newest first, of those with a `seq` below `before`."""
        ...

    def statuses(self, submissions: Sequence[str], *, lease: float) -> list[Status]:
        """Return what `status` does for several, read at one moment, in the given order.

        Ids that are not there are left out; the rate of what is done is 0.
        """
        ...

    def page(
        self,
        submission: str,
        *,
        statuses: Sequence[JobStatus] = (),
        meant: JobFilter | None = None,
        cursor: int | None = None,
        backwards: bool = False,
        limit: int = 60,
    ) -> JobPage:
        """Return at most `limit` jobs, by index, behind `cursor` (before it, going `backwards`).

        What it reads is bounded, whatever a filter means and however many jobs there are.
        """
        ...

    def these(self, submission: str, indices: Sequence[int]) -> list[Job]:
        """Return the jobs with these indices, in their order; those that are not there are left out."""
        ...
