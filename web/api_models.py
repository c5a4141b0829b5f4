"""What the API answers, as its OpenAPI description has it: the fields of the command line's `--json`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

JobState = Literal["waiting", "queued", "running", "succeeded", "failed", "cancelled"]
SubmissionState = Literal["loading", "open", "paused", "cancelled", "pruning", "done"]


class ProblemDetails(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


# Of each path: the problem document has a media type of its own, which FastAPI does not give to models.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {"application/problem+json": {"schema": ProblemDetails.model_json_schema()}},
    }
    for status in (400, 401, 403, 404, 413, 421, 422, 429, 500, 503, 507)
}


class SubmissionRow(BaseModel):
    """A submission in a list."""

    id: str
    name: str | None
    model: str
    state: SubmissionState
    total: int
    waiting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    created: str
    source: str
    priority: int
    weight: float
    max_running: int | None
    note: str | None


class SubmissionPage(BaseModel):
    """Some submissions, the newest first."""

    submissions: list[SubmissionRow]
    cursor: Annotated[int | None, Field(description="Of the next page; null when there is no more.")]


class SubmissionStatus(BaseModel):
    """How far a submission is."""

    id: str
    name: str | None
    model: str
    state: SubmissionState
    total: int
    counts: dict[JobState, int]
    images_per_second: float
    eta_seconds: float | None
    waiting_because: str | None


class OneSubmission(BaseModel):
    """How far a submission is."""

    submission: SubmissionStatus


class NewSubmissionAnswer(OneSubmission):
    """What became of a submit."""

    new: Annotated[bool, Field(description="False where the same was submitted before; nothing was added.")]
    remarks: Annotated[list[str], Field(description="What the command line would have said on stderr.")]


class Said(OneSubmission):
    """What was done."""

    said: list[str]


class ImageFields(BaseModel):
    """A stored picture."""

    url: str
    format: Literal["png", "jpeg", "webp"]
    bytes: int
    file_sha256: str
    pixel_sha256: str
    copied_from: str | None
    seconds: dict[str, float]
    numerics: dict[str, Any]


class JobFields(BaseModel):
    """A job with all that is known of it."""

    job: str
    status: JobState
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
    extra: dict[str, Any]
    attempt: int
    failures: int
    progress: float | None
    incarnation: str | None
    created: str | None
    queued: str | None
    started: str | None
    finished: str | None
    lost_sha256: str | None
    not_before: str | None
    warnings: list[str]
    error_type: str | None
    error_message: str | None
    image: ImageFields | None


class OneJob(BaseModel):
    """A job."""

    job: JobFields


class JobPageFields(BaseModel):
    """Some jobs, in the order of their index."""

    jobs: list[JobFields]
    cursor: Annotated[int | None, Field(description="Of the next page; null when there is no more.")]
    complete: Annotated[
        bool,
        Field(description="False where the filter was not tried on all jobs yet: go on with the cursor."),
    ]


class WorkerFields(BaseModel):
    """A worker process."""

    incarnation: str
    name: str
    host: str
    pid: int
    model: str
    revision: str | None
    family: str | None
    way: str | None
    device: str
    device_uuid: str | None
    dtype: str
    mode: str
    lanes: int
    lanes_used: int
    images_per_second: float
    concurrency: int
    state: Literal["starting", "ready", "draining", "stopped", "expired"]
    alive: bool
    heartbeat: str
    heartbeat_age_seconds: float
    started: str
    running: int
    version: str
    note: str | None


class Workers(BaseModel):
    """The workers, newest first."""

    workers: list[WorkerFields]


class Share(BaseModel):
    """What a submission gets of the workers; what is left out stays."""

    priority: Annotated[int | None, Field(ge=-(2**31), lt=2**31)] = None
    weight: Annotated[float | None, Field(ge=1e-3, le=1e3)] = None
    max_running: Annotated[int | None, Field(ge=0, lt=2**31, description="0 is no limit.")] = None
