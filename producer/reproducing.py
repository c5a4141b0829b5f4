"""`reproduce`: render pictures again along the ordinary path, and hold each new one against the old."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from producer.company import Company, follow_in, terminated_like_interrupted
from producer.comparing import Change, Likeness, Outcome, changes, compare
from producer.counted import counted
from producer.inputs import check_stored
from producer.models import serving
from producer.originals import Original
from producer.output import count_of, remark
from producer.pruning import prune_now
from producer.recorded import (
    Wishes,
    kind_of,
    recorded_environment,
    reference_of,
    warn_of_unlike,
    worker_options,
)
from producer.session import Session
from storage.errors import BadInputError, PromptmillError, UnreachableError
from storage.records import Image, Job, Submission

SOURCE = "reproduce"  # of its submissions, in `list`


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one picture.

    Attributes:
        likeness: of the new render to the old one.
        changes: what differs in the numerics record, also where the bytes are the same all the same.
    """

    original: Original
    likeness: Likeness
    changes: tuple[Change, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether other bytes came out although nothing that is recorded differs."""
        picture = self.likeness
        excused = picture.outcome is Outcome.NONE or bool(self.changes)
        same = picture.outcome is Outcome.BYTES
        # A file that is only known by what it says may have been saved again, with other texts.
        # Of one that is gone nobody can say whether more than its texts (promptmill's version) differs.
        excuses = bool(picture.texts) or bool(picture.detail) or self.original.job is None
        resaved = picture.outcome is Outcome.PIXELS and excuses
        return not (same or excused or resaved or self.original.numerics.get("mode") == "throughput")


@dataclass(kw_only=True, slots=True)
class Reproduction:
    """One `reproduce`: pictures that one worker can render, and what it needs for that.

    Attributes:
        company: who renders.
        submission: the temporary one, once there is one.
    """

    model: str
    originals: list[Original]
    company: Company
    submission: Submission | None = None
    results: list[Result] = field(default_factory=list)


def plan(
    session: Session, originals: Sequence[Original], wishes: Wishes, typed: Sequence[str]
) -> list[Reproduction]:
    """Put together what one worker can render; nothing is written and nothing is started.

    Args:
        session: of the command.
        originals: all that is to be rendered again.
        wishes: what the user says of the worker.
        typed: the flags that the user typed, as they are shown.

    Raises:
        BadInputError: when a model is unknown, or the flags cannot be used.
    """
    kinds: dict[str, list[Original]] = {}
    for original in originals:
        try:
            check_stored(session.images, original.parameters.options)
        except BadInputError as error:
            raise BadInputError(f"{original.name} cannot be rendered again: {error}") from error
        kinds.setdefault(kind_of(original.model, original.numerics), []).append(original)
    return [_planned(session, alike, wishes, typed) for alike in kinds.values()]


def _planned(session: Session, alike: list[Original], wishes: Wishes, typed: Sequence[str]) -> Reproduction:
    model, numerics = alike[0].model, alike[0].numerics
    reference = reference_of(session.settings, model, numerics, wishes)
    others = serving(session.jobs.workers(alive_only=True), model, lease=session.settings.lease)
    if reference is None and not others:
        raise BadInputError(
            f"{alike[0].name} is of model {model}, which is not configured and served by no worker; add "
            f"--model {model}=REPO_OR_PATH."
        )
    warn_of_unlike(session, model, numerics)
    company = Company(
        session,
        model,
        worker_options(reference, numerics, wishes) if reference else None,
        given=typed,
        environment=recorded_environment(numerics),
    )
    company.check()
    return Reproduction(model=model, originals=alike, company=company)


def reproduce(session: Session, task: Reproduction, *, keep: bool) -> None:
    """Render one group of pictures again, compare them, and remove what was rendered.

    Args:
        session: of the command.
        task: gets the results.
        keep: leave the submission of the new pictures.

    Raises:
        PromptmillError: when it could not be rendered; the submission stays, cancelled.
        KeyboardInterrupt: likewise.
    """
    task.submission = submission = _submit(session, task)
    try:
        with terminated_like_interrupted():
            follow_in(task.company, submission, title="reproducing")
            task.company.ask_to_stop()  # it ends while the pictures are compared
            total = len(task.originals)
            task.results += counted(_compared(session, task, submission), total=total, title="comparing")
    except (KeyboardInterrupt, PromptmillError):
        task.company.stop(said=True)
        _leave(session, submission)
        raise
    finally:
        task.company.stop()
    if not keep:
        try:
            prune_now(session, submission.id)
        except UnreachableError as error:  # the results are worth more than the room that it takes
            remark(f"{error} Then `promptmill prune {submission.id}` removes what was rendered.")


def _submit(session: Session, task: Reproduction) -> Submission:
    """Submit the jobs anew; without a content hash, so that nothing takes them for a list that was there."""
    submission, _ = session.jobs.add_submission(model=task.model, source=SOURCE)
    session.jobs.add_jobs(submission.id, (original.parameters for original in task.originals))
    remark(f"Submission {submission.id} renders {count_of(len(task.originals), 'picture')} again.")
    return session.jobs.open_submission(submission.id)


def abandon(session: Session, submission: Submission) -> None:
    """Nobody will compare what is not rendered yet: let no worker render it."""
    try:
        session.jobs.cancel(submission.id)
        session.jobs.sweep_cancelled(submission.id)
    except UnreachableError as error:
        remark(str(error))


def _leave(session: Session, submission: Submission) -> None:
    abandon(session, submission)
    remark(f"Submission {submission.id} is left as it is; `promptmill prune {submission.id}` removes it.")


def _compared(session: Session, task: Reproduction, submission: Submission) -> Iterator[Result]:
    for original, job in zip(task.originals, session.jobs.jobs(submission.id), strict=True):
        yield _result(session, original, job)


def _result(session: Session, original: Original, job: Job) -> Result:
    if job.image is None:
        detail = job.error_message or f"its job ended {job.status}"
        return Result(original=original, likeness=Likeness(outcome=Outcome.NONE, detail=detail))
    return Result(
        original=original,
        likeness=_likeness(session, original, job.image),
        changes=tuple(changes(original.numerics, job.image.numerics)),
    )


def _likeness(session: Session, original: Original, new: Image) -> Likeness:
    """Compare with what was recorded first: the old file itself may be gone or damaged."""
    if new.file_sha256 == original.file_sha256:
        return Likeness(outcome=Outcome.BYTES)
    old = original.read()
    if old is None or hashlib.sha256(old).hexdigest() != original.file_sha256:
        same = new.pixel_sha256 == original.pixel_sha256
        lost = "missing" if old is None else "damaged"
        how_much = "" if same else "; how much it differs, nobody can say"
        return Likeness(
            outcome=Outcome.PIXELS if same else Outcome.DIFFERENT,
            detail=f"the old file is {lost}{how_much}",
        )
    try:
        return compare(old, session.images.read(new.key))
    except BadInputError as error:
        return Likeness(outcome=Outcome.DIFFERENT, detail=str(error).rstrip("."))


def result_fields(result: Result) -> dict[str, Any]:
    """Return what `reproduce --json` prints of a picture."""
    picture = result.likeness
    return {
        "name": result.original.name,
        "job": result.original.job,
        "model": result.original.model,
        "outcome": str(picture.outcome),
        "max_difference": picture.max_difference,
        "psnr_db": None if picture.psnr_db is None else round(picture.psnr_db, 2),
        "texts": list(picture.texts),
        "detail": picture.detail or None,
        "changes": [{"name": one.name, "before": one.before, "after": one.after} for one in result.changes],
        "broken_promise": result.broken,
    }
