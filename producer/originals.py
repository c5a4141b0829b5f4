"""The pictures that `reproduce` renders again: named by file, job or submission; what is recorded of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from producer.readers.picture import OURS, read_picture
from producer.session import Session
from storage.errors import BadInputError, UnreachableError
from storage.parameters import JobParameters
from storage.records import Job, JobStatus, Submission, SubmissionState, being_pruned


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """A picture as it was rendered.

    Attributes:
        name: what the user called it: a file, or a job's label.
        job: label of the job whose picture it is; None where only the file tells of it.
        model: name of its model.
        parameters: of its job, all filled in.
        numerics: its record.
        file_sha256: of its bytes, as they were recorded.
        pixel_sha256: of its pixels, likewise; None where nobody knows.
        read: returns its bytes as they are now; None where they are gone.
    """

    name: str
    job: str | None
    model: str
    parameters: JobParameters
    numerics: Mapping[str, Any]
    file_sha256: str
    pixel_sha256: str | None
    read: Callable[[], bytes | None]


def originals(session: Session, reference: str) -> Iterator[Original]:
    """Yield what a FILE, a JOB or a SUBMISSION stands for.

    Raises:
        BadInputError: when it names nothing, or nothing that was rendered.
    """
    if os.path.isfile(reference):  # noqa: PTH113  (pathlib's raises for what cannot be a path)
        yield _of_file(session, Path(reference))
    elif ":" in reference:
        yield _of_job(session, session.jobs.find_job(reference))
    else:
        yield from _of_submission(session, _found(session, reference))


def _found(session: Session, reference: str) -> Submission:
    try:
        found = session.jobs.find_submission(reference)
    except BadInputError as error:
        if "/" in reference or "." in reference:
            raise BadInputError(
                f"There is neither a file nor a submission {reference!r}; name a picture's file, a job like "
                f"@last:0, or a submission."
            ) from error
        raise
    if found.state is SubmissionState.PRUNING:
        raise BadInputError(being_pruned(found.id))
    return found


def _of_submission(session: Session, submission: Submission) -> Iterator[Original]:
    any_yet = False
    for job in session.jobs.jobs(submission.id, statuses=(JobStatus.SUCCEEDED,)):
        any_yet = True
        yield _of_job(session, job, model=submission.model)
    if not any_yet:
        raise BadInputError(f"Submission {submission.id} has no picture yet; see `promptmill status`.")


def _of_job(session: Session, job: Job, *, model: str | None = None, name: str | None = None) -> Original:
    if job.image is None:
        raise BadInputError(f"Job {job.label} has no picture: it is {job.status}.")
    image = job.image
    return Original(
        name=name or job.label,
        job=job.label,
        model=model or session.jobs.find_submission(job.submission).model,
        parameters=replace(job.parameters, extra={}),
        numerics=image.numerics,
        file_sha256=image.file_sha256,
        pixel_sha256=image.pixel_sha256,
        read=lambda: session.images.find(image.key),
    )


def _of_file(session: Session, path: Path) -> Original:
    """Look a file up by its hash; where no stored picture has it, believe what it says of itself."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreachableError(f"{path} cannot be read: {error.strerror or error}.") from error
    digest = hashlib.sha256(data).hexdigest()
    known = session.jobs.find_pictures(digest, limit=1)
    if known:
        return replace(_of_job(session, known[0], name=str(path)), read=lambda: data)
    return replace(_of_record(path, digest), read=lambda: data)


def _of_record(path: Path, digest: str) -> Original:
    """Believe what a picture says of itself."""
    try:
        said = read_picture(path)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error
    if said.record is None:
        why = f" ({said.problem.rstrip('.')})" if said.written_by == OURS and said.problem else ""
        raise BadInputError(
            f"No picture of this database has the bytes of {path}, and it has no record of promptmill's that "
            f"can be used{why}; `promptmill render --from-image {path}` begins with what others wrote."
        )
    return Original(
        name=str(path),
        job=None,
        model=said.record.model,
        parameters=said.record.parameters,
        numerics=said.record.numerics,
        file_sha256=digest,
        pixel_sha256=None,
        read=lambda: None,
    )
