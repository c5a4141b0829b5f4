"""The pictures that `reproduce` renders again: named by file, job or submission; what is recorded of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from producer.session import Session
from storage.errors import BadInputError, UnreachableError
from storage.parameters import JobParameters, check_job
from storage.records import Job, JobStatus, Submission, SubmissionState, being_pruned

_SHOWN = (
    "prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "width", "height",
    "sampler", "schedule", "options",
)  # fmt: skip


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
    record = _record_in(path)
    try:
        parameters = check_job(JobParameters(**{name: record["parameters"][name] for name in _SHOWN}))
        numerics = {"model_revision": record["model"].get("revision"), **record["numerics"]}
        model = str(record["model"]["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"What {path} says of itself lacks what rendering needs; name its job instead."
        ) from error
    return Original(
        name=str(path),
        job=None,
        model=model,
        parameters=parameters,
        numerics=numerics,
        file_sha256=digest,
        pixel_sha256=None,
        read=lambda: None,
    )


def _record_in(path: Path) -> dict[str, Any]:
    """Return the JSON under a picture's key `promptmill`."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only pictures need it)

    nothing = BadInputError(
        f"No picture of this database has the bytes of {path}, and it has no record of promptmill's; "
        f"`promptmill render --from-image {path}` begins with what other programs wrote."
    )
    try:
        with Image.open(path) as picture:
            record = json.loads(picture.info["promptmill"])
    except UnidentifiedImageError as error:
        raise BadInputError(f"{path} is no picture; name a PNG, a job or a submission.") from error
    except KeyError:
        raise nothing from None
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path} cannot be read ({error}).") from error
    if not isinstance(record, dict):
        raise nothing
    return record
