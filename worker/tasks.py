"""The task: claim -> engine, or a picture that is there already -> save -> finish."""

from __future__ import annotations

import hashlib
import time
import traceback
from dataclasses import replace

import structlog
from celery import Celery

from storage.errors import BadInputError, PromptmillError, UnreachableError
from storage.imagestore import picture_key
from storage.parameters import suffix_of
from storage.records import Claim, Finish, Image
from storage.strict_transport import TASK
from storage.version import MESSAGE_VERSION
from worker.engine.errors import Cancelled, EngineDeadError, Released, RenderError
from worker.engine.request import RenderResult
from worker.metadata import file_numerics, fingerprint, image_format_of, texts_of
from worker.metrics import LOST, PICTURES, note_failure, note_stages
from worker.process import WorkerProcess
from worker.reuse import Earlier, find_earlier
from worker.stages.picture import encode_picture, pixel_sha256
from worker.surroundings import GaveUpError

log = structlog.get_logger()


def add_render_task(app: Celery, process: WorkerProcess) -> None:
    """Register the task `promptmill.render` of this process."""

    @app.task(name=TASK, shared=False, ignore_result=True, acks_late=True)  # type: ignore[untyped-decorator]  # celery has no types
    def render(job: int, *, version: int = MESSAGE_VERSION) -> None:
        """Render one job; a message that is not ours is logged and dropped, the rows stay true."""
        if version != MESSAGE_VERSION or not isinstance(job, int):
            log.error("message rejected", action="reject", version=version, job_id=str(job)[:80])
            return
        render_job(process, job)


def render_job(process: WorkerProcess, job: int) -> None:
    """Render one job from claim to image row; whatever happens, the row says it."""
    try:
        with structlog.contextvars.bound_contextvars(job_id=job), process.claimed(job) as claim:
            if claim is None:
                return
            about = {"job": claim.label, "submission": claim.submission, "attempt": claim.attempt}
            with structlog.contextvars.bound_contextvars(**about):
                log.debug("claimed", action="claim", incarnation=claim.incarnation)
                try:
                    render_claim(process, claim)
                except GaveUpError as error:
                    pause(process, claim, str(error))
    except GaveUpError as error:  # not even the claim could be written
        process.give_up(str(error))


def render_claim(process: WorkerProcess, claim: Claim) -> None:
    """Render a claimed job and say in its row what became of it; GaveUpError if that cannot be kept."""
    try:
        earlier = find_earlier(process, claim) if claim.reuse else None
        if earlier is not None:
            image, warnings = copy(process, claim, earlier), earlier.warnings
        else:
            result = process.render(claim).result()
            image, warnings = save(process, claim, result), result.warnings
        finish(process, claim, image, warnings)
    except GaveUpError:
        raise
    except (Cancelled, Released):
        give_back(process, claim)
    except EngineDeadError:
        return  # the process is going down; its supervisor releases the job
    except (RenderError, BadInputError) as error:
        fail(process, claim, error, permanent=getattr(error, "permanent", True))
    except Exception as error:  # noqa: BLE001 - the job's own error, whatever it is: charged to it
        fail(process, claim, error, permanent=False)


def save(process: WorkerProcess, claim: Claim, result: RenderResult) -> Image:
    """Encode the picture with what it says of itself and store it: the file first, then the row."""
    began = time.perf_counter()
    numerics = file_numerics(result.numerics, claim.parameters)
    data = encode_picture(result.pixels, texts_of(process, claim, numerics), claim.parameters.options)
    key = key_of(claim, claim.attempt)
    process.surroundings.patiently(lambda: process.images.write(key, data), what="save", forever=False)
    return Image(
        key=key,
        file_sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=pixel_sha256(result.pixels),
        bytes=len(data),
        format=image_format_of(claim.parameters),
        seconds={**result.seconds, "save": time.perf_counter() - began},
        numerics=numerics,
        fingerprint=fingerprint(process, claim, numerics),
    )


def copy(process: WorkerProcess, claim: Claim, earlier: Earlier) -> Image:
    """Store an earlier picture once more, as this job's own: the file first, then the row."""
    began = time.perf_counter()
    key = key_of(claim, claim.attempt)
    process.surroundings.patiently(
        lambda: process.images.write(key, earlier.data), what="save", forever=False
    )
    return replace(
        earlier.image,
        key=key,
        seconds={"copy": time.perf_counter() - began},
        copied_from=earlier.image.copied_from or earlier.label,
    )


def key_of(claim: Claim, attempt: int) -> str:
    """Return the key of one attempt's picture."""
    suffix = suffix_of(image_format_of(claim.parameters))
    return picture_key(claim.submission, claim.index, attempt, suffix=suffix)


def finish(process: WorkerProcess, claim: Claim, image: Image, warnings: list[str]) -> None:
    """Write `succeeded` and the image row; a loser deletes only its own file."""
    outcome = process.surroundings.patiently(
        lambda: process.jobs.finish(claim, image, warnings=warnings), what="finish", forever=True
    )
    if outcome is Finish.LOST:
        LOST.labels(claim.model).inc()
        log.info("lost to another attempt", action="lost", key=image.key)
        try:
            process.images.delete(image.key)
        except UnreachableError as error:
            log.warning("a lost picture stays", action="lost", key=image.key, reason=str(error))
        return
    PICTURES.labels(claim.model, "copied" if image.copied_from else "rendered").inc()
    note_stages(claim.model, image.seconds)
    done = "taken over" if image.copied_from else "rendered"
    log.info(done, action="finish", seconds=round(sum(image.seconds.values()), 3), key=image.key)
    sweep_earlier(process, claim)


def sweep_earlier(process: WorkerProcess, claim: Claim) -> None:
    """Delete what earlier attempts wrote and, killed before their row, could not delete themselves."""
    try:
        for attempt in range(1, claim.attempt):
            process.images.delete(key_of(claim, attempt))
    except UnreachableError as error:
        log.warning("a stale picture stays", action="sweep", reason=str(error))


def give_back(process: WorkerProcess, claim: Claim) -> None:
    """Return the job uncharged: cancelled, taken over, or this process drains."""
    process.surroundings.patiently(lambda: process.jobs.release(claim), what="release", forever=True)


def pause(process: WorkerProcess, claim: Claim, reason: str) -> None:
    """Give up: pause the submission with the reason, give the job back, stop the process."""
    log.error("giving up", action="give_up", reason=reason)
    try:
        try:
            if not process.stopping.is_set():
                process.jobs.pause(claim.submission, note=reason)
        finally:
            process.jobs.release(claim)
    except PromptmillError as error:
        log.warning("cannot pause", action="pause", reason=str(error))
    process.give_up(reason)


def fail(process: WorkerProcess, claim: Claim, error: Exception, *, permanent: bool) -> None:
    """Charge the failure to the job."""
    outcome = process.surroundings.patiently(
        lambda: process.jobs.fail(
            claim,
            error_type=type(error).__name__,
            message=str(error) or type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
            permanent=permanent,
        ),
        what="fail",
        forever=True,
    )
    note_failure(claim.model, error, outcome.value)
    log.warning("failed", action="fail", outcome=outcome.value, error=str(error))
