"""What a picture says of itself, and the hash of all that determines its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.fingerprint import render_fingerprint
from storage.infotext import write_infotext
from storage.loras import lora_set
from storage.parameters import PNG, JobParameters
from storage.picture_metadata import Texts
from storage.picture_record import Record, write_record
from storage.records import Claim
from storage.version import promptmill_version
from worker.process import WorkerProcess
from worker.stages.picture import encoder_versions


def image_format_of(parameters: JobParameters) -> str:
    """Return `png`, `jpeg` or `webp`."""
    return str(parameters.options.get("image_format", PNG))


def file_numerics(numerics: Mapping[str, Any], parameters: JobParameters) -> dict[str, Any]:
    """Return the numerics record of a job's file: that of its pixels, and its encoder's version if lossy."""
    versions = encoder_versions(image_format_of(parameters))
    if not versions:
        return dict(numerics)
    return {**numerics, "versions": {**numerics.get("versions", {}), **versions}}


def texts_of(process: WorkerProcess, claim: Claim, numerics: dict[str, Any]) -> Texts:
    """Return the texts of a job's file: nothing that differs between two renders of the same job.

    Args:
        process: whose model it is rendered with.
        claim: the job.
        numerics: of its file.
    """
    infotext = write_infotext(
        claim.parameters,
        model=claim.model,
        model_hash=process.model.revision[:10],
        version=promptmill_version(),
        lora_hashes={
            name: process.model.loras[name].short_hash for name, _ in lora_set(claim.parameters.options)
        },
    )
    record = Record(
        parameters=claim.parameters, model=claim.model, source=process.model.repo, numerics=numerics
    )
    return Texts(infotext=infotext, record=write_record(record))


def fingerprint(process: WorkerProcess, claim: Claim, numerics: Mapping[str, Any]) -> str:
    """Return the hash of all that determines a job's file, given the file's numerics record."""
    return render_fingerprint(
        claim.parameters,
        model=claim.model,
        source=process.model.repo,
        version=promptmill_version(),
        numerics=numerics,
    )
