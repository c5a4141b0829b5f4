"""`verify`: hash every stored picture again, and say which is not the one that its row tells of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from producer.counted import counted
from producer.in_order import in_order
from producer.output import count_of, print_table
from producer.pruning import ALL
from producer.session import Session
from storage.errors import BadInputError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.records import Job, JobStatus, Submission, SubmissionState, being_pruned


class Fault(StrEnum):
    """What can be wrong with a picture."""

    MISSING = "missing"  # nothing is stored under its key
    DAMAGED = "damaged"  # other bytes than its row tells of
    SWAPPED = "swapped"  # the bytes of another job's picture
    NO_ROW = "no row"  # the job succeeded, and no row tells of a picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What was found of one job's picture.

    Attributes:
        fault: None where it is right.
        detail: the fault in words.
        found_sha256: of what lies under its key instead; None where nothing does.
        holds: label of the job whose picture that is.
    """

    job: Job
    fault: Fault | None = None
    detail: str = ""
    found_sha256: str | None = None
    holds: str | None = None

    @property
    def key(self) -> str | None:
        """Where the picture should lie."""
        return self.job.image.key if self.job.image else None

    @property
    def other_bytes(self) -> bool:
        """Whether this picture was rendered again after a loss, and came out with other bytes."""
        image, lost = self.job.image, self.job.lost_sha256
        return self.fault is None and image is not None and lost not in (None, image.file_sha256)


def verify(jobs: JobStore, images: ImageStore, submission: str) -> Iterator[Checked]:
    """Check the pictures of all succeeded jobs, in order.

    Raises:
        UnreachableError: when the store cannot be asked; nothing is called missing then.
    """
    succeeded = jobs.jobs(submission, statuses=(JobStatus.SUCCEEDED,))
    # Hashing takes longer than a disk of this machine, and lets other threads run.
    for _, checked in in_order(lambda job: _look(images, job), succeeded, local=False):
        yield from _confirmed(jobs, images, checked)


def _look(images: ImageStore, job: Job) -> Checked:
    if job.image is None:
        return Checked(job=job, fault=Fault.NO_ROW, detail="it succeeded, and no row tells of its picture")
    data = images.find(job.image.key)
    if data is None:
        return Checked(job=job, fault=Fault.MISSING, detail="its file is missing")
    digest = hashlib.sha256(data).hexdigest()
    if digest == job.image.file_sha256:
        return Checked(job=job)
    size = job.image.bytes
    detail = f"its file has {len(data):,} bytes, not {size:,}" if len(data) != size else "its bytes changed"
    return Checked(job=job, fault=Fault.DAMAGED, detail=detail, found_sha256=digest)


def _confirmed(jobs: JobStore, images: ImageStore, checked: Checked) -> Iterator[Checked]:
    """Look again where something is wrong: the job may have been rendered again or removed meanwhile."""
    if checked.fault is None:
        yield checked
        return
    try:
        fresh = jobs.find_job(checked.job.label)
    except BadInputError:
        return  # its submission was pruned
    if fresh.status is not JobStatus.SUCCEEDED:
        return
    if jobs.find_submission(fresh.submission).state is SubmissionState.PRUNING:
        return  # files go before their rows
    again = checked if fresh.image == checked.job.image else _look(images, fresh)
    if again.found_sha256 and (others := jobs.find_pictures(again.found_sha256, limit=1)):
        label = others[0].label
        detail = f"its file holds the picture of {label}"
        again = replace(again, fault=Fault.SWAPPED, holds=label, detail=detail)
    yield again


def summary(*, pictures: int, wrong: int, submissions: int) -> str:
    """Say in a sentence what was checked."""
    of = f"{count_of(pictures, 'picture')} of {count_of(submissions, 'submission')}"
    return f"Checked {of}: {pictures - wrong:,} right, {wrong:,} wrong."


def chosen_submissions(session: Session, references: Sequence[str]) -> list[Submission]:
    """Return the submissions that are named, once each; all that are not being removed where none is.

    Raises:
        BadInputError: for one that is being removed.
    """
    if not references:
        everything = session.jobs.submissions(limit=ALL)
        return [one for one in everything if one.state is not SubmissionState.PRUNING]
    named = {found.id: found for found in map(session.jobs.find_submission, references)}
    for found in named.values():
        if found.state is SubmissionState.PRUNING:
            raise BadInputError(being_pruned(found.id))
    return list(named.values())


def noteworthy(session: Session, chosen: Sequence[Submission]) -> Iterator[Checked]:
    """Verify submissions, with a bar; yield what is wrong, or was rendered again with other bytes.

    The others, perhaps a million, are not kept.
    """
    for submission in chosen:
        total = session.jobs.counts(submission.id)[JobStatus.SUCCEEDED]
        checks = verify(session.jobs, session.images, submission.id)
        for one in counted(checks, total=total, title=f"verifying {submission.name or submission.id}"):
            if one.fault is not None or one.other_bytes:
                yield one


def print_wrong(wrong: Sequence[Checked]) -> None:
    """Print a table of what is wrong; nothing where nothing is."""
    if wrong:
        rows = [[one.job.label, str(one.fault), one.detail, one.key or ""] for one in wrong]
        print_table(["JOB", "FAULT", "DETAIL", "KEY"], rows)


def checked_fields(one: Checked) -> dict[str, Any]:
    """Return what `--json` prints of a wrong picture."""
    return {
        "job": one.job.label,
        "key": one.key,
        "fault": str(one.fault),
        "detail": one.detail,
        "file_sha256": one.job.image.file_sha256 if one.job.image else None,
        "found_sha256": one.found_sha256,
        "holds": one.holds,
    }
