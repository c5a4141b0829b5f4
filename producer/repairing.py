"""`doctor --repair`: put pictures back that lie elsewhere, render the others again, say what is left.

Nothing that is good is ever overwritten before it lies in a second place, and a broken file stays until the
job's new picture has its row: the worker deletes it then, as it does with every earlier attempt's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from producer.company import Company, follow_in, terminated_like_interrupted
from producer.comparing import changes
from producer.output import remark
from producer.pruning import RESCUED
from producer.recorded import (
    Wishes,
    kind_of,
    recorded_environment,
    reference_of,
    warn_of_unlike,
    worker_options,
)
from producer.session import Session
from producer.verifying import Checked
from storage.errors import BadInputError, ModelLoadError, PromptmillError, UnreachableError
from storage.records import UNFINISHED, Image, Job, JobStatus

CHUNK = 500  # jobs that are brought back in one commit
NO_WISHES = Wishes(
    flags={
        "devices": "auto", "dtype": "auto", "lanes": "auto", "mode": "exact", "compile": False,
        "cuda_graphs": False, "controlnet": None,
    }
)  # fmt: skip


class Mending(StrEnum):
    """What became of a broken picture."""

    PUT_BACK = "put back"  # the very file lay elsewhere in the store
    SAME = "rendered again"  # with the bytes that it had
    OTHER = "rendered again, other bytes"
    NONE = "not mended"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mended:
    """One broken picture and what became of it.

    Attributes:
        detail: why it is not mended, or why the bytes may be others.
    """

    checked: Checked
    mending: Mending
    detail: str = ""


def repair(session: Session, wrong: Sequence[Checked]) -> Iterator[Mended]:
    """Mend what can be mended; yield every broken picture with what became of it.

    Raises:
        UnreachableError: when database or store fail; what is mended stays so, and the rest can be repaired
            later.
        KeyboardInterrupt: likewise; jobs that were brought back wait for a worker.
    """
    _rescue(session, wrong)
    left = []
    for one in wrong:
        if _put_back(session, one):
            yield Mended(checked=one, mending=Mending.PUT_BACK)
        else:
            left.append(one)
    submissions = dict.fromkeys(one.job.submission for one in left)
    models = {submission: session.jobs.find_submission(submission).model for submission in submissions}
    kinds: dict[str, list[Checked]] = {}
    for one in left:
        model = models[one.job.submission]
        kinds.setdefault(kind_of(model, _numerics(one.job)), []).append(one)
    for alike in kinds.values():
        yield from _render_again(session, alike)


def _rescue(session: Session, wrong: Sequence[Checked]) -> None:
    """Copy each picture that lies under a broken one's key and not under its own, before that is written.

    Where its own job is not repaired this time, the copy waits for that.
    """
    for one in wrong:
        if one.job.image is None or one.found_sha256 is None:
            continue
        owners = [job.image for job in session.jobs.find_pictures(one.found_sha256) if job.image]
        if owners and not any(_find(session, owner.key, owner) for owner in owners):
            data = _find(session, one.job.image.key, owners[0])
            if data is not None:
                session.images.write(_rescue_key(owners[0]), data)


def _rescue_folder(image: Image) -> str:
    return f"{RESCUED}/{image.file_sha256}"


def _rescue_key(image: Image) -> str:
    return f"{_rescue_folder(image)}/picture.{image.format}"


def _put_back(session: Session, one: Checked) -> bool:
    """Write a picture's own bytes under its key again, if they lie anywhere in the store."""
    image = one.job.image
    if image is None:
        return False
    twins = session.jobs.find_pictures(image.file_sha256)
    elsewhere = [job.image.key for job in twins if job.image and job.image.key != image.key]
    for key in (_rescue_key(image), *elsewhere):
        data = _find(session, key, image)
        if data is not None:
            session.images.write(image.key, data)
            session.images.delete_folder(_rescue_folder(image))
            return True
    return False


def _find(session: Session, key: str, image: Image) -> bytes | None:
    """Return what lies under a key, if it is the very file of this image."""
    data = session.images.find(key)
    return data if data is not None and hashlib.sha256(data).hexdigest() == image.file_sha256 else None


def _render_again(session: Session, alike: list[Checked]) -> Iterator[Mended]:
    """Render the pictures of one kind again, in the company of a worker of that kind."""
    model = session.jobs.find_submission(alike[0].job.submission).model
    numerics = _numerics(alike[0].job)
    try:
        reference = reference_of(session.settings, model, numerics, NO_WISHES)
        options = worker_options(reference, numerics, NO_WISHES) if reference else None
        company = Company(session, model, options, environment=recorded_environment(numerics))
        company.check()
    except (BadInputError, ModelLoadError) as error:
        yield from (Mended(checked=one, mending=Mending.NONE, detail=str(error)) for one in alike)
        return
    warn_of_unlike(session, model, numerics)
    by_submission: dict[str, list[Checked]] = {}
    for one in alike:
        by_submission.setdefault(one.job.submission, []).append(one)
    try:
        with terminated_like_interrupted():
            for submission, ones in by_submission.items():
                yield from _mended_in(session, company, submission, ones)
    except KeyboardInterrupt:
        company.stop(said=True)
        remark("Stopped: jobs that were brought back wait for a worker; `promptmill worker start` is enough.")
        raise
    finally:
        company.stop()


def _mended_in(session: Session, company: Company, submission: str, ones: list[Checked]) -> Iterator[Mended]:
    """Bring one submission's jobs back, wait for their pictures, and hold these against the lost ones."""
    brought: list[int] = []
    problem = ""
    try:
        for at in range(0, len(ones), CHUNK):
            jobs = [one.job for one in ones[at : at + CHUNK]]
            brought += session.jobs.render_again(submission, jobs)
        if brought:
            _wait(session, company, submission, brought)
    except UnreachableError:
        raise
    except PromptmillError as error:
        problem = str(error)
    for one in ones:
        try:
            yield _outcome(one, session.jobs.find_job(one.job.label), problem)
        except BadInputError as error:  # its submission was pruned meanwhile
            yield Mended(checked=one, mending=Mending.NONE, detail=str(error))


def _wait(session: Session, company: Company, submission: str, indices: Sequence[int]) -> None:
    """Follow a submission until these jobs are finished, whatever else it still has to do."""
    pending = [f"{submission}:{index}" for index in reversed(indices)]

    def all_finished() -> bool:
        while pending and session.jobs.find_job(pending[-1]).status not in UNFINISHED:
            pending.pop()
        return not pending

    follow_in(company, session.jobs.find_submission(submission), title="rendering again", enough=all_finished)


def _outcome(one: Checked, now: Job, problem: str) -> Mended:
    if now.status is not JobStatus.SUCCEEDED or now.image is None:
        detail = problem or now.error_message or f"its job is {now.status}"
        return Mended(checked=one, mending=Mending.NONE, detail=detail)
    if now.attempt == one.job.attempt:  # somebody else was faster, or it could not be brought back
        return Mended(checked=one, mending=Mending.NONE, detail=problem or "it has changed meanwhile")
    lost = one.job.image
    if lost is None or lost.file_sha256 == now.image.file_sha256:
        return Mended(checked=one, mending=Mending.SAME)
    return Mended(
        checked=one,
        mending=Mending.OTHER,
        detail="; ".join(map(str, changes(lost.numerics, now.image.numerics))) or _why_other(lost),
    )


def _why_other(lost: Image) -> str:
    if lost.numerics.get("mode") == "throughput":
        return "mode throughput promises no bytes"
    return "nothing that is recorded of the worker differs"


def _numerics(job: Job) -> dict[str, Any]:
    return job.image.numerics if job.image else {}
