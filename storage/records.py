"""The records that cross the border between storage and the rest: plain, frozen, no SQLAlchemy in sight."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from storage.parameters import JobParameters
from storage.served import ServedModel


class JobStatus(StrEnum):
    """Where a job is; the arrows are in docs/job-flow.md."""

    WAITING = "waiting"  # in the database only, eligible for dispatch (after not_before)
    QUEUED = "queued"  # a message in Redis points at it, or will again within seconds
    RUNNING = "running"  # claimed by one incarnation under one attempt
    SUCCEEDED = "succeeded"  # one picture, one image row
    FAILED = "failed"  # gave up; error_message says why; `retry` brings it back
    CANCELLED = "cancelled"  # its submission was cancelled first; `retry` brings it back


UNFINISHED = (JobStatus.WAITING, JobStatus.QUEUED, JobStatus.RUNNING)


class SubmissionState(StrEnum):
    """What may happen to a submission's jobs; `done` is derived from their statuses."""

    LOADING = "loading"  # its jobs are still being inserted; nothing is dispatched
    OPEN = "open"
    PAUSED = "paused"  # nothing new is dispatched or claimed; note says why
    CANCELLED = "cancelled"
    PRUNING = "pruning"  # files and rows are being removed; there is no way back


class WorkerState(StrEnum):
    """What an incarnation does now."""

    STARTING = "starting"  # loading its model
    READY = "ready"
    DRAINING = "draining"  # finishes what it renders, takes nothing new
    STOPPED = "stopped"  # went in order
    EXPIRED = "expired"  # declared dead; whatever it still does is dropped


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One submitted prompt list.

    Attributes:
        content_hash: of all that it asks for; None for one from before there was such a hash.
        reuse: whether its jobs take over pictures that are there already.
    """

    id: str
    seq: int
    name: str | None
    created_at: datetime
    source: str
    model: str
    state: SubmissionState
    priority: int
    weight: float
    max_running: int | None
    total: int
    idempotency_key: str | None
    note: str | None
    content_hash: str | None = None
    reuse: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job with all that is known of it; `id` is the database's, users see `label`.

    Attributes:
        lost_sha256: the `file_sha256` of a picture that was lost or damaged and is, or was, rendered again.
    """

    id: int
    submission: str
    index: int
    status: JobStatus
    parameters: JobParameters
    attempt: int
    failures: int
    suspect: bool
    incarnation: str | None
    not_before: datetime | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    warnings: list[str]
    error_type: str | None
    error_message: str | None
    traceback: str | None
    image: Image | None = None
    progress: float | None = None
    lost_sha256: str | None = None

    @property
    def label(self) -> str:
        """The job as users see it: `SUBMISSION:INDEX`."""
        return f"{self.submission}:{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The right to render one job: the fencing token (job, attempt, incarnation) with the parameters.

    All parameters are set: what submit left open was filled in from the worker's defaults. `priority` and
    `reuse` are its submission's.
    """

    job: int
    submission: str
    index: int
    attempt: int
    failures: int
    incarnation: str
    model: str
    parameters: JobParameters
    priority: int
    reuse: bool = False

    @property
    def label(self) -> str:
        """The job as users see it: `SUBMISSION:INDEX`."""
        return f"{self.submission}:{self.index}"


class Refusal(StrEnum):
    """Why a claim was not granted."""

    GONE = "gone"  # a duplicate, cancelled or paused, or this worker drains: drop the message
    SUSPECT = "suspect"  # the job must be claimed alone: see worker/company.py
    COMPANY = "company"  # asked alone, but this incarnation has running jobs; it went back to waiting


class Finish(StrEnum):
    """What a finish found."""

    SAVED = "saved"  # this call wrote succeeded and the image row
    OURS = "ours"  # an earlier call of the same attempt did; only its reply was lost
    LOST = "lost"  # the job was taken over: delete only our own file


class Failure(StrEnum):
    """What a failure did to the job."""

    WAITING = "waiting"  # it will be tried again after not_before
    FAILED = "failed"  # max_failures reached, or the error was permanent
    LOST = "lost"  # the job was taken over meanwhile; nothing was written


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One stored picture.

    Attributes:
        key: path below the store's root, `{submission}/{index // 1000:04d}/{index:06d}.png` (or .jpg, .webp).
        file_sha256: over the file's bytes.
        pixel_sha256: over the uint8 RGB pixels as they were rendered, row by row: what a reader of a PNG
            decodes, and of the lossy formats nobody.
        bytes: file size.
        format: `png`, `jpeg` or `webp`.
        seconds: seconds per stage (encode, denoise, decode, save), or of the copy.
        numerics: what determined the bits: model revision, dtype, lanes, versions, CPU.
        fingerprint: of all that determined the file (`storage.fingerprint`); None in rows from before it.
        copied_from: label of the job that it was rendered for, where another one took it over.
    """

    key: str
    file_sha256: str
    pixel_sha256: str
    bytes: int
    format: str
    seconds: dict[str, float]
    numerics: dict[str, Any]
    fingerprint: str | None = None
    copied_from: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One incarnation of a worker process.

    Attributes:
        model, revision, family, defaults, dtype, lanes, concurrency: of the model that it renders with now.
        beat: grows by one each second while the process lives.
        beat_at: when the beat last changed, on that host's clock: for people, never for leases.
        progress: fraction done of its running jobs, by job id.
        concurrency: how many jobs it holds at once, rendering, waiting for lanes or saving.
        drain_timeout: seconds, once `worker drain` has asked it to finish.
        lanes_used: at its last beat, of `lanes`.
        models: those of a worker of several, that take turns; empty for a worker of one (`served_by`).
    """

    incarnation: str
    name: str
    host: str
    pid: int
    device: str
    device_uuid: str | None
    model: str
    revision: str | None
    family: str | None
    defaults: dict[str, Any]
    mode: str
    dtype: str
    lanes: int
    concurrency: int
    version: str
    state: WorkerState
    beat: int
    beat_at: datetime
    started_at: datetime
    progress: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    drain_timeout: float | None = None
    lanes_used: int = 0
    models: tuple[ServedModel, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a beat hears.

    Attributes:
        jobs: ids of the running jobs that are still this incarnation's.
        drain_timeout: seconds that `worker drain` gives running jobs to finish; None while nobody asked.
    """

    jobs: set[int]
    drain_timeout: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How many bytes a database took on its disk, and takes now."""

    before: int
    after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What a submission holds: its jobs, its pictures, and the bytes of these."""

    jobs: int
    pictures: int
    bytes: int


def being_pruned(submission: str) -> str:
    """Say why nothing can be done any more with a submission in state `pruning`."""
    return f"Submission {submission} is being removed; `promptmill prune {submission}` completes that."


def no_live_worker(model: str) -> str:
    """Say why a submission waits that nobody renders: a `waiting_because`."""
    return f"no live worker serves model {model}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What `status --json` prints for one submission."""

    submission: Submission
    counts: dict[JobStatus, int]
    images_per_second: float
    eta_seconds: float | None
    waiting_because: str | None

    @property
    def unfinished(self) -> int:
        """How many jobs are neither succeeded, failed nor cancelled."""
        return sum(self.counts.get(status, 0) for status in UNFINISHED)

    @property
    def done(self) -> bool:
        """Whether every job has reached its end."""
        return self.unfinished == 0 and self.submission.state is not SubmissionState.LOADING
