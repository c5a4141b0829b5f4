"""`doctor --render`: a small picture, rendered twice, and held against the first one of the same numerics.

What is held: file and pixels. The first self-test on a kind of worker is kept in the database under all that
determines its bytes (the job, promptmill's version, the numerics record); every later one has to equal it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from producer.company import Company, follow_in, terminated_like_interrupted
from producer.models import default_model, resolve_model
from producer.pruning import prune_now
from producer.recorded import Wishes, worker_options
from producer.repairing import NO_WISHES
from producer.reproducing import abandon
from producer.session import Session
from storage.errors import PromptmillError, WaitTimeoutError
from storage.measured import SELF_TEST
from storage.parameters import JobParameters, parameters_of
from storage.records import Image, Job
from storage.version import promptmill_version

SOURCE = "doctor"  # of its submissions, in `list`
TWICE = 2
PRIORITY = 1_000  # ahead of lists that would keep it waiting for hours
PATIENCE = 3600.0  # seconds: a large model may have to be fetched, loaded and tuned first
# Few steps; all else is the model's own, whatever pipeline it has.
JOB = JobParameters(
    prompt="A photo of an otter on a red background", seed=32, num_inference_steps=8, guidance_scale=None,
    sampler=None, schedule=None,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    """What came of it.

    Attributes:
        same: whether it has the bytes that it should have; None where there was nothing to compare with.
        detail: of people.
        file_sha256: of the picture; None where there is none.
    """

    same: bool | None
    detail: str
    file_sha256: str | None = None


def self_test(session: Session, asked: str | None, wishes: Wishes = NO_WISHES) -> SelfTest:
    """Render the self-test with a worker that serves the model, or one of our own, and judge it.

    Args:
        session: of the command.
        asked: the model, as `--model` says it; None for the one that `render` would take.
        wishes: flags of the worker that is started where none serves the model.

    Raises:
        PromptmillError: when it could not be rendered, or not in time; its submission stays, cancelled.
    """
    reference = resolve_model(session.settings, asked or default_model(session.settings))
    company = Company(session, reference.name, worker_options(reference, {}, wishes))
    company.check()
    submission, _ = session.jobs.add_submission(model=reference.name, source=SOURCE, priority=PRIORITY)
    session.jobs.add_jobs(submission.id, [JOB] * TWICE)
    submission = session.jobs.open_submission(submission.id)
    try:
        with terminated_like_interrupted():
            late = time.monotonic() + PATIENCE
            status = follow_in(company, submission, title="self-test", enough=lambda: time.monotonic() > late)
        if not status.done:
            raise WaitTimeoutError(
                f"The self-test was not rendered within {PATIENCE / 60:.0f} minutes; `promptmill worker "
                f"list` and the worker's log say what it does instead."
            )
    except (KeyboardInterrupt, PromptmillError):
        abandon(session, submission)
        raise
    finally:
        company.stop()
    judged = _judged(session, reference.name, list(session.jobs.jobs(submission.id)))
    if judged.same is not False:  # what is wrong stays, to be looked at
        prune_now(session, submission.id)
        return judged
    return SelfTest(
        same=False, file_sha256=judged.file_sha256,
        detail=f"{judged.detail}; submission {submission.id} has the pictures",
    )  # fmt: skip


def _judged(session: Session, model: str, jobs: Sequence[Job]) -> SelfTest:
    images = [job.image for job in jobs if job.image is not None]
    if len(images) < TWICE:
        failed = next(job for job in jobs if job.image is None)
        return SelfTest(same=False, detail=f"not rendered: {failed.error_message or failed.status}")
    first, second = images
    for image in images:
        if hashlib.sha256(session.images.read(image.key)).hexdigest() != image.file_sha256:
            return SelfTest(same=False, detail=f"the store gives back other bytes of {image.key}")
    if first.numerics.get("mode") == "throughput":
        return SelfTest(same=None, detail=f"rendered{_how(first)}; throughput mode promises no bytes")
    if first.numerics != second.numerics:
        return SelfTest(same=None, detail="rendered by workers of two kinds; run it again")
    if first.file_sha256 != second.file_sha256:
        return SelfTest(
            same=False, file_sha256=second.file_sha256,
            detail=f"two renders of one job differ{_how(first)}: the device cannot be trusted",
        )  # fmt: skip
    return _held(session, model, jobs[0], first)


def _held(session: Session, model: str, job: Job, image: Image) -> SelfTest:
    facts = {
        SELF_TEST: parameters_of(job.parameters),
        "model": model,
        "version": promptmill_version(),
        "numerics": image.numerics,
    }
    found: dict[str, Any] = {
        "file_sha256": image.file_sha256,
        "pixel_sha256": image.pixel_sha256,
        "rendered_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    kept = session.jobs.tuning(facts)
    if kept is None:
        session.jobs.keep_tuning(facts, found)
        return SelfTest(
            same=None, file_sha256=image.file_sha256,
            detail=f"two renders are equal{_how(image)}; kept, and later self-tests are held against it",
        )  # fmt: skip
    since = str(kept["rendered_at"])
    if kept["file_sha256"] == image.file_sha256:
        return SelfTest(
            same=True, file_sha256=image.file_sha256, detail=f"the same bytes as on {since}{_how(image)}"
        )
    what = "other pixels" if kept["pixel_sha256"] != image.pixel_sha256 else "the same pixels in other bytes"
    return SelfTest(
        same=False, file_sha256=image.file_sha256,
        detail=f"{what} than on {since}{_how(image)}, with the same numerics: suspect the device",
    )  # fmt: skip


def _how(image: Image) -> str:
    numerics = image.numerics
    named = [f"{numerics[name]}" for name in ("mode", "dtype") if name in numerics]
    lanes = [f"{numerics['lanes']} lanes"] if "lanes" in numerics else []
    return f" ({', '.join([*named, *lanes, str(numerics.get('device', 'unknown device'))])})"
