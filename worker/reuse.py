"""`--reuse`: a job whose very picture is there already takes it over instead of being rendered.

Its very picture: the file that this worker would write, told by the fingerprint of all that determines it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import structlog

from storage.errors import UnreachableError
from storage.records import Claim, Image, Job
from worker.metadata import file_numerics, fingerprint
from worker.process import WorkerProcess

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A picture that was rendered before.

    Attributes:
        label: of the job that has it.
        image: its row.
        warnings: of that job; they are true of its picture wherever it lies.
        data: the file's bytes, checked.
    """

    label: str
    image: Image
    warnings: list[str]
    data: bytes


def find_earlier(process: WorkerProcess, claim: Claim) -> Earlier | None:
    """Find the picture that rendering would make; None where there is none that can be read.

    Raises:
        BadInputError: when this worker cannot render the job.
    """
    numerics = process.engine.numerics_of(claim.parameters)
    wanted = fingerprint(process, claim, file_numerics(numerics, claim.parameters))
    found = process.surroundings.patiently(
        lambda: process.jobs.find_rendered(wanted), what="reuse", forever=True
    )
    return next((earlier for job in found if (earlier := _read(process, job))), None)


def _read(process: WorkerProcess, job: Job) -> Earlier | None:
    """Read a job's picture; None, said in the log, where it is lost or not what its row says."""
    if job.image is None:
        return None
    try:
        data = process.images.read(job.image.key)
    except UnreachableError as error:
        log.warning("cannot take a picture over", action="reuse", source=job.label, reason=str(error))
        return None
    if hashlib.sha256(data).hexdigest() != job.image.file_sha256:
        reason = "the file is not the one that was stored"
        log.warning("cannot take a picture over", action="reuse", source=job.label, reason=reason)
        return None
    return Earlier(label=job.label, image=job.image, warnings=job.warnings, data=data)
