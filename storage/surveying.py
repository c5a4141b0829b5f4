"""The part of the job store's contract that watching a whole farm needs: `promptmill metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from storage.records import JobStatus, SubmissionState, Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class FarmView:
    """How a farm is, at one moment.

    Attributes:
        clock: of the database.
        jobs: how many there are by model and status, of submissions that are complete and not being removed.
        oldest: by model, when the oldest open submission was made that has jobs which wait or are queued.
        submissions: how many there are by model and state.
        workers: all that have not ended, also those that have fallen silent.
    """

    clock: datetime
    jobs: dict[tuple[str, JobStatus], int]
    oldest: dict[str, datetime]
    submissions: dict[tuple[str, SubmissionState], int]
    workers: list[Worker]


class Surveying(Protocol):
    """See `storage.jobstore.JobStore`."""

    def survey(self) -> FarmView:
        """Look at everything, and read few of the jobs however many there are."""
        ...
