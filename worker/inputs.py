"""A claimed job's inputs: out of the picture store, held against their hashes, decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import BadInputError
from storage.inputs import digest, input_key, inputs_of, open_input, shown_input
from storage.parameters import JobParameters
from worker.engine.errors import RenderError

if TYPE_CHECKING:
    from worker.process import WorkerProcess


def read_pictures(process: WorkerProcess, job: JobParameters) -> dict[str, Any]:
    """Return the pictures that a job begins with, by their name in INPUTS; empty for most.

    Raises:
        RenderError: when one is missing or damaged: for good only if its bytes can be no picture.
    """
    return {name: _read(process, name, sha256) for name, sha256 in inputs_of(job.options).items()}


def _read(process: WorkerProcess, name: str, sha256: str) -> Any:
    key, what = input_key(sha256), shown_input(name)
    data = process.surroundings.patiently(
        lambda: process.images.find(key), what="read an input", forever=False
    )
    if data is None or digest(data) != sha256:
        wrong = "is not in the picture store" if data is None else "has other bytes than it had"
        raise RenderError(
            f"The {what} of the job {wrong} ({key}); bring it back with a job that names the file, then "
            f"`promptmill retry`."
        )
    try:
        return open_input(data)
    except BadInputError as error:
        raise RenderError(f"The {what} of the job cannot be used: {error}", permanent=True) from error
