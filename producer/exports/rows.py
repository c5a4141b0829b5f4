"""What an export says of a picture, under the same names in every format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from producer.pictures import metadata_row, own_row, with_extra
from storage.errors import UnreachableError
from storage.parameters import suffix_of
from storage.records import Image, Job, Submission

FILE_NAME, CAPTION = "file_name", "text"
LINK, STATUS, ERROR = "link", "status", "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A picture on its way into an export.

    Attributes:
        job: its job.
        image: its picture's record.
        name: of its file, without suffix.
    """

    job: Job
    image: Image
    name: str

    @property
    def file_name(self) -> str:
        """Its name with the suffix of the picture's format."""
        return f"{self.name}.{suffix_of(self.image.format)}"


def image_of(job: Job) -> Image:
    """Return a succeeded job's picture; UnreachableError if its row is missing."""
    if job.image is None:
        raise UnreachableError(f"Job {job.label} succeeded but has no picture; see `promptmill doctor`.")
    return job.image


def picture_row(sample: Sample, submission: Submission) -> dict[str, Any]:
    """Return what is said of a picture, `file_name` first; only columns that it has."""
    return metadata_row(sample.job, sample.image, submission, sample.file_name)


def link_row(job: Job, submission: Submission, link: str | None) -> dict[str, Any]:
    """Return what is said of a job where a link stands for its picture, or nothing does."""
    own = own_row(job, job.image, submission)
    return with_extra({LINK: link, **own, STATUS: str(job.status), ERROR: job.error_message}, job)
