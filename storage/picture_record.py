"""The JSON that a picture carries under `promptmill`: all that determined it, exactly.

    {"version": 1, "parameters": {...}, "model": {"name": ..., "source": ...}, "numerics": {...}}

The infotext beside it is for other programs, and cannot hold everything: it has no escape for prompts, and no
place for the numerics record. Nothing in this one differs between two renders of the same job: no id, time,
host, worker or attempt. A job's `extra` columns stay out of it, too: they did not determine the picture, and
may be private.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import BadInputError
from storage.parameters import JobParameters, check_job, parameters_of

RECORD = "promptmill"  # the PNG's text chunk and the XMP property
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a picture of ours says of itself.

    Attributes:
        parameters: of its job, `extra` apart.
        model: the model's name where it was rendered.
        source: the hub repo that the model came from; None for a folder, whose path is nobody's business.
        numerics: what besides the parameters determined the bytes, the model's revision included.
    """

    parameters: JobParameters
    model: str
    source: str | None
    numerics: dict[str, Any]

    @property
    def revision(self) -> str | None:
        """The model's commit on the hub, or the sha256 over a folder's files."""
        revision = self.numerics.get("model_revision")
        return revision if isinstance(revision, str) else None


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Parameters(_Form):
    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None
    width: int | None
    height: int | None
    sampler: str | None
    schedule: str | None
    options: dict[str, Any]


class _Model(_Form):
    name: str
    source: str | None


class _Record(_Form):
    version: Literal[1]
    parameters: _Parameters
    model: _Model
    numerics: dict[str, Any]


def write_record(record: Record) -> str:
    """Write a record as JSON: equal records give equal text, in ASCII, which nothing on the way mangles."""
    content = {
        "version": VERSION,
        "parameters": parameters_of(record.parameters),
        "model": {"name": record.model, "source": record.source},
        "numerics": record.numerics,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_record(text: str) -> Record:
    """Read what `write_record` wrote, into the very same record.

    Raises:
        BadInputError: one sentence about what is wrong with it.
    """
    try:
        found = _Record.model_validate_json(text)
        job = check_job(JobParameters(**found.parameters.model_dump()))
    except ValidationError as error:
        raise BadInputError(_sentence(error)) from error
    except BadInputError as error:
        raise BadInputError(f"Its promptmill record cannot be used: {error}") from error
    return Record(parameters=job, model=found.model.name, source=found.model.source, numerics=found.numerics)


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if where == "version" and isinstance(first["input"], int) and first["input"] > VERSION:
        return f"Its promptmill record has version {first['input']}; upgrade promptmill to read it."
    reason = f"{where}: {first['msg']}" if where else first["msg"]
    return f"Its promptmill record cannot be used ({' '.join(reason.split())}); it was changed or cut."
