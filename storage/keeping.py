"""The part of the job store's contract that is about keeping: to remove, to mend, to stay small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.records import Holdings, Job, Room, Submission, Worker


class Keeping(Protocol):
    """What `prune` and `doctor --repair` need; the rest of the contract is `storage.jobstore.JobStore`."""

    def holdings(self, submission: str) -> Holdings:
        """Count a submission's jobs and pictures, and the bytes of these."""
        ...

    def check_prunable(self, submission: str) -> None:
        """Raise the BadInputError that `begin_pruning` would raise, if any."""
        ...

    def begin_pruning(self, submission: str) -> Submission:
        """Set `pruning`, from which nothing leads back, and take every unfinished job from whoever holds it.

        Afterwards nothing of it is dispatched, claimed, finished, retried or opened. May be repeated.

        Raises:
            BadInputError: while it is loading; or unfinished, unless it was cancelled.
        """
        ...

    def lowest_index(self, submission: str) -> int | None:
        """Return the lowest index that a submission has a job of; None once there is no job."""
        ...

    def prune_jobs(self, submission: str, *, first: int, last: int) -> int:
        """Remove jobs `first` to `last` with their images in one commit; say how many jobs it were.

        Raises:
            BadInputError: when the submission is not in state `pruning`.
        """
        ...

    def end_pruning(self, submission: str) -> None:
        """Remove the row of a submission that has no job left; nothing happens if it is gone already.

        Raises:
            BadInputError: when it has jobs, or is not in state `pruning`.
        """
        ...

    def inputs_used(self) -> set[str]:
        """Return the hashes of all inputs that any job here names, whatever its state; it reads every job."""
        ...

    def render_again(self, submission: str, jobs: Sequence[Job]) -> list[int]:
        """Bring succeeded jobs back to `waiting` and remove their image rows, in one commit.

        What has changed since `jobs` was read is left alone. A cancelled submission is opened again; its
        cancelled jobs stay cancelled. The hash of what was lost stays with the job, and since `attempt`
        never decreases, the new picture has another key than the old one.

        Args:
            submission: its id.
            jobs: some of its jobs, as they were read; a few hundred at most, for they are one commit.

        Returns:
            The indices of the jobs that are waiting now.

        Raises:
            BadInputError: while the submission is paused or being removed.
        """
        ...

    def forget_workers(self) -> list[Worker]:
        """Remove the rows of incarnations that ended a week ago or longer, and return them.

        Of each model the newest stays that has told its revision: what a submit needs to know of the model.
        """
        ...

    def compact(self, *, whole: bool = False) -> Room:
        """Give the room of removed rows back to the disk, and say how large the database was and is.

        On SQLite in short commits, beside which workers go on. A file of an earlier promptmill can only be
        written anew, which is done with `whole` and else left: it takes as much room again, and nobody writes
        meanwhile. PostgreSQL keeps such room for new rows; `whole` tells it to look for it now.

        Raises:
            BadInputError: while a file that has to be written anew is used by live workers.
        """
        ...
