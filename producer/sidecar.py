"""A JSON file beside a picture, for programs that read no metadata out of pictures."""

from __future__ import annotations

import json
from pathlib import Path

from storage.parameters import parameters_of
from storage.records import Image, Job, Submission

VERSION = 1


def sidecar(job: Job, image: Image, submission: Submission) -> bytes:
    """Return what is known of a picture as a JSON object: what it says of itself, and what it does not.

    That is besides its parameters, model and numerics record the job that it came of, the columns that the
    prompt file had for it (`extra`), and the hashes of its file and its pixels.
    """
    content = {
        "version": VERSION,
        "job": job.label,
        "submission": {"id": submission.id, "name": submission.name},
        "parameters": parameters_of(job.parameters),
        "extra": job.parameters.extra,
        "model": {"name": submission.model, "revision": image.numerics.get("model_revision")},
        **({"copied_from": image.copied_from} if image.copied_from else {}),
        "numerics": image.numerics,
        "format": image.format,
        "bytes": image.bytes,
        "file_sha256": image.file_sha256,
        "pixel_sha256": image.pixel_sha256,
        "warnings": job.warnings,
    }
    return json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"


def sidecar_path(picture: Path) -> Path:
    """Return where a picture's sidecar lies: beside it, by the same name."""
    return picture.with_suffix(".json")
