"""A folder of pictures in the order of the prompts, with the `metadata.jsonl` of `datasets`' imagefolder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.folder_faults import folder_faults
from producer.jobs import settings_of
from producer.sidecar import sidecar, sidecar_path
from storage.errors import BadInputError, UnreachableError
from storage.filters import EXTRA
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.loras import told_options
from storage.parameters import suffix_of
from storage.records import Image, Job, JobStatus, Submission

MARKER = "promptmill.json"  # says which submission a folder was made for
HIDDEN_MARKER = ".promptmill.json"  # where other programs read every visible file
METADATA = "metadata.jsonl"
SLUG_BYTES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One written picture."""

    path: Path
    job: Job


def check_folder(
    folder: Path, *, submission: str | None = None, key: str | None = None, marker: str = MARKER
) -> None:
    """Check, without writing anything, that pictures may be written into a folder.

    It must be missing, empty, or made for the same submission, by its id or its idempotency key.

    Raises:
        BadInputError: otherwise, or when it could not be made.
    """
    place = folder.absolute()
    if not os.path.lexists(place):
        check_makeable(folder)
        return
    if not place.is_dir():
        raise BadInputError(f"{folder} is a file, not a folder; choose another place for the pictures.")
    try:
        empty = next(place.iterdir(), None) is None
    except OSError as error:
        raise BadInputError(
            f"The folder {folder} cannot be read ({error.strerror}); choose another."
        ) from error
    made = {} if empty else _read_marker(place / marker)
    if not empty and not made:
        raise BadInputError(f"The folder {folder} holds other files; choose another, or an empty one.")
    ours = made.get("submission") == submission or (key is not None and made.get("key") == key)
    if made and not ours:
        raise BadInputError(
            f"The folder {folder} holds the pictures of submission {made['submission']}; choose another, or "
            f"complete that one with `promptmill render --resume {made['submission']}`."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise BadInputError(f"The folder {folder} cannot be written; choose another.")


def check_makeable(folder: Path) -> None:
    """Raise BadInputError if a missing folder could not be made."""
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise BadInputError(f"The folder {folder} cannot be made in {above}; choose another.")


def claim_folder(folder: Path, submission: Submission, *, marker: str = MARKER) -> None:
    """Make the folder and note in it which submission it is for."""
    with folder_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made = {"version": 1, "submission": submission.id, "key": submission.idempotency_key}
        _replace(folder / marker, json.dumps(made).encode() + b"\n")


def write_pictures(
    store: JobStore, images: ImageStore, submission: Submission, folder: Path, *, sidecars: bool = False
) -> Iterator[Picture]:
    """Write the pictures of all succeeded jobs, in order, and yield each; the metadata come last.

    A file that is there already with the right content is left alone. With `sidecars`, each has one.

    Raises:
        UnreachableError: when a picture cannot be read, or the folder not be written.
        StoreFullError: when the folder's disk is full.
    """
    partial = folder / f".{METADATA}.part"
    with folder_faults(folder), partial.open("w", encoding="utf-8", newline="\n") as metadata:
        for job in store.jobs(submission.id, statuses=(JobStatus.SUCCEEDED,)):
            if job.image is None:
                raise UnreachableError(
                    f"Job {job.label} succeeded but has no picture; see `promptmill doctor`."
                )
            name = f"{job.index:06d}-{slug(job.parameters.prompt)}.{suffix_of(job.image.format)}"
            path = folder / name
            if not _holds(path, job.image):
                _replace(path, read_picture(images, job.image))
            if sidecars:
                _replace(sidecar_path(path), sidecar(job, job.image, submission))
            json.dump(metadata_row(job, job.image, submission, name), metadata, ensure_ascii=False)
            metadata.write("\n")
            yield Picture(path=path, job=job)
    with folder_faults(folder):
        partial.replace(folder / METADATA)


def read_picture(images: ImageStore, image: Image) -> bytes:
    """Read a picture out of the store, where it must be what it was when it was rendered.

    Raises:
        UnreachableError: when it cannot be read, or has other bytes.
    """
    data = images.read(image.key)
    if hashlib.sha256(data).hexdigest() != image.file_sha256:
        raise UnreachableError(
            f"The picture {image.key} is not what it was when it was rendered; `promptmill doctor --repair` "
            f"puts it back or renders it again."
        )
    return data


def metadata_row(job: Job, image: Image, submission: Submission, name: str) -> dict[str, Any]:
    """Return a picture's line of `metadata.jsonl`: `file_name` first, then the prompt as `text`."""
    return with_extra({"file_name": name, **own_row(job, image, submission)}, job)


def own_row(job: Job, image: Image | None, submission: Submission) -> dict[str, Any]:
    """Return what is said of a job and its picture, columns of its prompt file apart."""
    parameters = job.parameters
    hashes = {"file_sha256": image.file_sha256, "pixel_sha256": image.pixel_sha256} if image else {}
    return {
        "text": parameters.prompt,
        **settings_of(parameters),
        **({"options": told_options(parameters.options)} if parameters.options else {}),
        "model": submission.model,
        "job": job.label,
        **hashes,
        **({"copied_from": image.copied_from} if image and image.copied_from else {}),
        **({"warnings": job.warnings} if job.warnings else {}),
    }


def with_extra(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Add the columns of the prompt file; one that has the name of one of ours must not hide it."""
    extra = job.parameters.extra
    return row | {f"{EXTRA}{key}" if key in row else key: value for key, value in extra.items()}


def slug(text: str) -> str:
    """Return a prompt as part of a file name: words of any script, joined by dashes, at most 60 bytes."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-")
    short = words.encode()[:SLUG_BYTES].decode(errors="ignore")
    return short.strip("-") or "picture"


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) and isinstance(made.get("submission"), str) else {}


def _holds(path: Path, image: Image) -> bool:
    if not path.is_file() or path.stat().st_size != image.bytes:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == image.file_sha256


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: an interrupted run must not leave half a picture."""
    partial = path.with_name(f".{path.name[:100]}.part")
    partial.write_bytes(data)
    partial.replace(path)
