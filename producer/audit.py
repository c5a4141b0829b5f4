"""`doctor --audit`: does every job have its one picture or its one reason, and does every file have a row?

What is wrong breaks a promise. The rest is told apart: what a kill can leave, and what is not finished yet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from producer.pruning import RESCUED
from storage.errors import BadInputError
from storage.imagestore import FOLDER_JOBS, ImageStore, picture_folder, picture_key
from storage.inputs import digest, hash_in, input_key
from storage.jobstore import JobStore
from storage.parameters import suffix_of
from storage.records import UNFINISHED, Image, Job, JobStatus, Submission, SubmissionState, WorkerState

ALL = 2**31 - 1  # submissions: as many as there are
_ENDED = (WorkerState.STOPPED, WorkerState.EXPIRED)
READERS = 8  # pictures read at once: an object store answers slowly, but many at a time
# What a worker writes: a picture of any attempt, and what a killed write of it leaves beside it.
_OURS = re.compile(
    r"(?P<submission>[0-9a-z]{8})/\d{4,}/(?:"
    r"(?P<index>\d{6,})(?:-(?P<attempt>\d+))?\.\w+"
    r"|\.(?P<half_index>\d{6,})(?:-(?P<half_attempt>\d+))?\.\w+\.\d+-[0-9a-f]+\.part)"
)


class Kind(StrEnum):
    """What an audit can find."""

    LOST = "lost jobs"  # a submission has fewer rows than it was submitted with
    MISSING = "missing"  # a row whose file is not there
    DAMAGED = "damaged"  # a row whose file has other bytes
    NO_PICTURE = "no picture"  # succeeded, and no row tells of a picture
    TOO_MANY = "picture too many"  # a row of a job that did not succeed, or a second one
    OTHER_ATTEMPT = "other attempt"  # the picture is not of the attempt that succeeded
    NO_REASON = "no reason"  # failed, and nothing says why
    HELD_BY_NOBODY = "held by nobody"  # running in a worker that has ended
    NO_ROW = "file without a row"  # left by a killed worker; safe to remove
    UNKNOWN = "unknown file"  # of no job here; nobody removes it
    LOADING = "loading"  # a submit that was killed: finished by its key, or cancelled
    UNFINISHED = "unfinished"


WRONG = frozenset(
    {
        Kind.LOST, Kind.MISSING, Kind.DAMAGED, Kind.NO_PICTURE, Kind.TOO_MANY, Kind.OTHER_ATTEMPT,
        Kind.NO_REASON, Kind.HELD_BY_NOBODY,
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        where: label of a job, id of a submission, or path of a file below the store's root.
    """

    kind: Kind
    where: str
    detail: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it breaks a promise."""
        return self.kind in WRONG


def audit(jobs: JobStore, images: ImageStore) -> Iterator[Finding]:
    """Check every job and every file; it reads each picture, and memory stays flat.

    Workers may go on meanwhile: what is not finished is not judged, what seems wrong is looked at again.

    Raises:
        UnreachableError: when database or store cannot be asked; nothing is called missing then.
    """
    submissions = jobs.submissions(limit=ALL)
    ended = {worker.incarnation for worker in jobs.workers() if worker.state in _ENDED}
    with ThreadPoolExecutor(READERS, thread_name_prefix="audit") as pool:
        for submission in submissions:
            yield from _progress(jobs, submission, ended)
            if submission.state is SubmissionState.PRUNING:
                continue  # its rows promise nothing any more
            count = 0
            for _, each in groupby(jobs.jobs(submission.id), key=lambda job: job.index // FOLDER_JOBS):
                block = list(each)
                count += len({job.index for job in block})
                yield from _audit_block(jobs, images, block, pool)
            if submission.state is not SubmissionState.LOADING and count < submission.total:
                yield from _lost(jobs, submission, count)
    yield from _inputs(jobs, images)
    yield from _strangers(images, {submission.id for submission in submissions})


def _progress(jobs: JobStore, submission: Submission, ended: set[str]) -> Iterator[Finding]:
    """Say what of a submission is still to come."""
    if submission.state is SubmissionState.LOADING:
        detail = "its submit goes on or was killed: repeat it with the same --key, or cancel it"
        yield Finding(kind=Kind.LOADING, where=submission.id, detail=detail)
        return
    if submission.state is SubmissionState.PRUNING:
        detail = f"its files are being removed; `promptmill prune {submission.id}` completes that"
        yield Finding(kind=Kind.UNFINISHED, where=submission.id, detail=detail)
        return
    counts = jobs.counts(submission.id)
    left = {status: counts[status] for status in UNFINISHED if counts[status]}
    if left:
        detail = ", ".join(f"{count} {status}" for status, count in left.items())
        yield Finding(kind=Kind.UNFINISHED, where=submission.id, detail=f"{submission.state}: {detail}")
    for job in jobs.jobs(submission.id, statuses=(JobStatus.RUNNING,)):
        if job.incarnation in ended:
            detail = f"it runs in worker {job.incarnation}, which has ended"
            yield Finding(kind=Kind.HELD_BY_NOBODY, where=job.label, detail=detail)


def _lost(jobs: JobStore, submission: Submission, count: int) -> Iterator[Finding]:
    """Say that jobs are not there any more, unless the submission is being removed by now."""
    try:
        if jobs.find_submission(submission.id).state is SubmissionState.PRUNING:
            return
    except BadInputError:
        return
    detail = f"{submission.total - count:,} of its {submission.total:,} jobs have no row"
    yield Finding(kind=Kind.LOST, where=submission.id, detail=detail)


def _audit_block(
    jobs: JobStore, images: ImageStore, block: Sequence[Job], pool: ThreadPoolExecutor
) -> Iterator[Finding]:
    """Check the jobs whose pictures share a folder, then the folder."""
    seen: set[int] = set()
    for job, found in zip(block, pool.map(lambda job: _judge(images, job), block), strict=True):
        if job.index in seen:
            yield Finding(kind=Kind.TOO_MANY, where=job.label, detail="two rows tell of its picture")
        elif found is not None and (fresh := _again(jobs, images, job)) is not None:
            yield fresh
        seen.add(job.index)
    by_index = {job.index: job for job in block}
    for name in images.names(picture_folder(block[0].submission, block[0].index)):
        index, attempt = _parts(name)
        job_there = by_index.get(index) if index is not None else None
        if job_there is None or attempt > job_there.attempt:
            detail = "no job has such a picture; it may be newer than the database"
            if job_there is None or job_there.status not in UNFINISHED:
                yield Finding(kind=Kind.UNKNOWN, where=name, detail=detail)
        elif _is_left(job_there, name):
            detail = f"left by attempt {attempt} of {job_there.label}, which is {job_there.status}"
            yield Finding(kind=Kind.NO_ROW, where=name, detail=detail)


def _judge(images: ImageStore, job: Job) -> Finding | None:
    """Hold a job against its picture; None where nothing is wrong."""
    if job.status is not JobStatus.SUCCEEDED:
        if job.image is not None:
            return Finding(kind=Kind.TOO_MANY, where=job.label, detail=f"it is {job.status} and has one")
        if job.status is JobStatus.FAILED and not job.error_message:
            return Finding(kind=Kind.NO_REASON, where=job.label, detail="it failed and does not say why")
        return None
    if job.image is None:
        return Finding(kind=Kind.NO_PICTURE, where=job.label, detail="no row tells of its picture")
    return _judge_picture(images, job, job.image)


def _judge_picture(images: ImageStore, job: Job, image: Image) -> Finding | None:
    """Hold a picture's row against its file."""
    if image.key != picture_key(job.submission, job.index, job.attempt, suffix=suffix_of(image.format)):
        detail = f"{image.key} is not of attempt {job.attempt}"
        return Finding(kind=Kind.OTHER_ATTEMPT, where=job.label, detail=detail)
    data = images.find(image.key)
    if data is None:
        return Finding(kind=Kind.MISSING, where=job.label, detail=f"{image.key} is not there")
    if hashlib.sha256(data).hexdigest() != image.file_sha256:
        detail = f"{image.key} has other bytes than its row tells of"
        return Finding(kind=Kind.DAMAGED, where=job.label, detail=detail)
    return None


def _again(jobs: JobStore, images: ImageStore, job: Job) -> Finding | None:
    """Look once more where something is wrong: the job may have changed meanwhile, or be gone."""
    try:
        if jobs.find_submission(job.submission).state is SubmissionState.PRUNING:
            return None  # files go before their rows
        return _judge(images, jobs.find_job(job.label))
    except BadInputError:
        return None


def _parts(name: str) -> tuple[int | None, int]:
    """Return index and attempt of the picture that a file is, or is half of; None where it is neither."""
    found = _OURS.fullmatch(name)
    if found is None:
        return None, 0
    index, attempt = found["index"] or found["half_index"], found["attempt"] or found["half_attempt"]
    return int(index), int(attempt or 1)


def _is_left(job: Job, name: str) -> bool:
    """Whether a file of one of the job's attempts will never get a row any more, nor be wanted."""
    if job.image is None and job.lost_sha256:
        return False  # perhaps damaged, but all that there is of a picture that could not be rendered again
    return job.status not in UNFINISHED and (job.image is None or job.image.key != name)


def _inputs(jobs: JobStore, images: ImageStore) -> Iterator[Finding]:
    """Hold the inputs that jobs begin with against their names, which are their hashes."""
    for sha256 in sorted(jobs.inputs_used()):
        key = input_key(sha256)
        data = images.find(key)
        if data is None:
            detail = "jobs begin with it, and it is not there; submit them again with the file"
            yield Finding(kind=Kind.MISSING, where=key, detail=detail)
        elif digest(data) != sha256:
            detail = "jobs begin with it, and it has other bytes; submitting one with the file mends it"
            yield Finding(kind=Kind.DAMAGED, where=key, detail=detail)


def _strangers(images: ImageStore, known: set[str]) -> Iterator[Finding]:
    for name in images.names():
        if hash_in(name):
            continue  # no picture: a prune removes it when no job needs it
        folder = name.partition("/")[0]
        if folder == RESCUED:
            detail = "a copy that waits for `promptmill doctor --repair`"
            yield Finding(kind=Kind.UNKNOWN, where=name, detail=detail)
        elif folder not in known:
            yield Finding(kind=Kind.UNKNOWN, where=name, detail="no submission here has such a folder")


def remove_files_without_a_row(
    jobs: JobStore, images: ImageStore, findings: Sequence[Finding]
) -> Iterator[str]:
    """Remove what killed workers left, and yield the path of each file that is gone.

    A job that has ended gets no picture of an attempt that it had already: attempts only grow. So what is
    removed here can never be wanted, even if the job is brought back at this very moment.

    Raises:
        UnreachableError: when database or store fail; the rest can be removed later.
    """
    for finding in findings:
        index, attempt = _parts(finding.where)
        if finding.kind is not Kind.NO_ROW or index is None:
            continue
        job = jobs.find_job(f"{finding.where.partition('/')[0]}:{index}")
        if attempt <= job.attempt and _is_left(job, finding.where):
            images.discard(finding.where)
            yield finding.where
