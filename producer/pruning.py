"""Remove submissions: files first, then rows, a thousand jobs at a time, the submission's own row last.

Whoever is killed half-way leaves a submission in state `pruning`, which another prune completes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from producer.session import Session
from storage.errors import BadInputError
from storage.imagestore import FOLDER_JOBS, picture_folder
from storage.inputs import FOLDER, hash_in, input_key
from storage.jobstore import JobStore
from storage.records import JobStatus, Submission, SubmissionState

RESCUED = "rescued"  # folder of the copies that a repair has put aside, each in one named for its hash
INPUTS_AT_ONCE = 16  # removed inputs that are held in memory until it is sure that nobody needs them
ALL = 2**31 - 1  # submissions: as many as there are
_AGE = re.compile(r"(\d{1,6})\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_age(text: str) -> timedelta:
    """Read `90m`, `12h`, `30d` or `8w`; BadInputError for anything else."""
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise BadInputError(f"--older-than {text!r} is no age; write 90m, 12h, 30d or 8w.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def older_than(jobs: JobStore, age: timedelta) -> tuple[list[Submission], list[Submission]]:
    """Return the submissions that were made longer ago than `age`: what may go, and what is unfinished."""
    before = datetime.now(UTC) - age
    going: list[Submission] = []
    staying: list[Submission] = []
    for found in jobs.submissions(limit=ALL):
        if found.created_at < before:
            (going if _may_go(jobs, found) else staying).append(found)
    return going, staying


def _may_go(jobs: JobStore, submission: Submission) -> bool:
    try:
        jobs.check_prunable(submission.id)
    except BadInputError:
        return False
    return True


def check(session: Session, submission: Submission) -> None:
    """Check that a submission can be removed, before anything is.

    Raises:
        BadInputError: when it is not finished and was not cancelled.
        UnreachableError: where its files would stay behind: the store is not there, or not mounted.
    """
    session.jobs.check_prunable(submission.id)
    if submission.state is SubmissionState.PRUNING:
        return  # its files are half gone already
    for job in session.jobs.jobs(submission.id, statuses=(JobStatus.SUCCEEDED,), limit=1):
        if job.image:
            session.images.find(job.image.key)


def prune(session: Session, submission: Submission) -> Iterator[int]:
    """Remove a submission with its jobs, rows and files; yield how many jobs went, again and again.

    Raises:
        BadInputError: when it is not finished and was not cancelled; nothing is removed.
        UnreachableError: when database or store fail; another prune goes on from there.
    """
    jobs, images = session.jobs, session.images
    jobs.begin_pruning(submission.id)
    while (index := jobs.lowest_index(submission.id)) is not None:
        first = index - index % FOLDER_JOBS
        images.delete_folder(picture_folder(submission.id, index))
        yield jobs.prune_jobs(submission.id, first=first, last=first + FOLDER_JOBS - 1)
    images.delete_folder(submission.id)
    shutil.rmtree(session.settings.thumbnails_path / submission.id, ignore_errors=True)
    jobs.end_pruning(submission.id)
    _forget_rescued(session)
    _forget_inputs(session)


def _forget_rescued(session: Session) -> None:
    """Remove the copies that `doctor --repair` has put aside for jobs that are not there any more."""
    rescued = {name.split("/")[1] for name in session.images.names(RESCUED) if name.count("/") > 1}
    for digest in rescued:
        if not session.jobs.find_pictures(digest, limit=1):
            session.images.delete_folder(f"{RESCUED}/{digest}")


def _forget_inputs(session: Session) -> None:
    """Remove the inputs that no job needs any more.

    Whoever submits writes its inputs before its rows and looks again after them. A job that was written
    while one was being removed gets it back here.
    """
    jobs, images = session.jobs, session.images
    stored = {sha256: name for name in images.names(FOLDER) if (sha256 := hash_in(name))}
    unused = stored.keys() - jobs.inputs_used() if stored else set()
    removed: dict[str, bytes] = {}
    for sha256 in sorted(unused):
        removed[sha256] = images.read(stored[sha256])
        images.delete(stored[sha256])
        if len(removed) == INPUTS_AT_ONCE:
            _bring_back_inputs(session, removed)
    _bring_back_inputs(session, removed)


def _bring_back_inputs(session: Session, removed: dict[str, bytes]) -> None:
    """Write again what a job has come to need since; forget the others."""
    for sha256 in removed.keys() & (session.jobs.inputs_used() if removed else set()):
        session.images.write(input_key(sha256), removed[sha256])
    removed.clear()


def prune_now(session: Session, submission: str) -> None:
    """Remove a submission, whatever it holds, without a word; errors as in `prune`."""
    for _ in prune(session, session.jobs.find_submission(submission)):
        pass
