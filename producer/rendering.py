"""`render` step by step: a worker where none serves the model, progress, pictures, and everything stopped."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from producer.company import Company, follow_in, terminated_like_interrupted
from producer.contact_sheet import MAX_PAGES, PER_PAGE, write_contact_sheets
from producer.follow import check_all_succeeded
from producer.output import count_of, remark
from producer.pictures import claim_folder, write_pictures
from producer.session import Session
from storage.errors import BadInputError, PromptmillError
from storage.models import configured_models
from storage.records import JobStatus, Submission, SubmissionState, being_pruned

if TYPE_CHECKING:
    from storage.models import ModelReference
    from storage.worker_options import WorkerOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """What one `render` needs once the submission is safe.

    Attributes:
        options: of the worker to start where none serves the model.
        given: worker options that the user typed, to say when a running worker makes them idle.
        sidecars: whether each picture gets a JSON file beside it.
    """

    session: Session
    submission: Submission
    model: ModelReference
    options: WorkerOptions
    given: list[str]
    out: Path
    sidecars: bool = False

    def resume_command(self) -> str:
        """Return the command line that completes this submission."""
        words = ["promptmill", "render", "--resume", self.submission.id, "--out", str(self.out)]
        words += ["--sidecar"] if self.sidecars else []
        if configured_models(self.session.settings.models).get(self.model.name) != self.model:
            words += ["--model", str(self.model)]
        return shlex.join(words)


def run(rendering: Rendering) -> None:
    """Complete a submission, write its pictures, and print where they are.

    Raises:
        SomeFailedError: when not every job has its picture; those that are there were written.
        UnreachableError: when the submission was paused because of a fault of the surroundings.
        KeyboardInterrupt: after everything that was started has been stopped.
    """
    session, submission = rendering.session, rendering.submission
    company = Company(session, rendering.model.name, rendering.options, given=rendering.given)
    try:
        claim_folder(rendering.out, submission)
        with terminated_like_interrupted():
            status = follow_in(company, submission, title="rendering")
            company.ask_to_stop()  # it ends while the pictures are written
            _write(rendering)
    except KeyboardInterrupt:
        company.stop(said=True)
        remark(_interrupted(rendering))
        raise
    except PromptmillError as error:
        company.stop()
        # What is kept, and how to go on, belongs to every such error.
        message = f"{error} Submission {submission.id} is kept; go on with `{rendering.resume_command()}`."
        raise type(error)(message) from error
    finally:
        company.stop()
    check_all_succeeded(session.jobs, status)


def _write(rendering: Rendering) -> None:
    """Write the pictures and contact sheets, and print their paths."""
    session = rendering.session
    first, written, warned = [], 0, []
    stores = (session.jobs, session.images)
    for picture in write_pictures(*stores, rendering.submission, rendering.out, sidecars=rendering.sidecars):
        written += 1
        if picture.job.warnings:
            warned.append(picture.job.label)
        if written <= PER_PAGE * MAX_PAGES:
            first.append(picture)
    sheets = write_contact_sheets(first, rendering.out)
    print_result(rendering.out, written, sheets)
    if warned:
        pictures = count_of(len(warned), "picture")
        remark(f"Warnings came with {pictures}; see `promptmill show {warned[0]}`, or metadata.jsonl.")
    if written > len(first):
        remark(f"The contact sheets show the first {count_of(len(first), 'picture')}.")


def print_result(out: Path, written: int, sheets: list[Path]) -> None:
    """Print on stdout where pictures and contact sheets are."""
    click.echo(f"Pictures: {out} ({written:,})")
    for sheet in sheets:
        click.echo(f"Contact sheet: {sheet}")


def _interrupted(rendering: Rendering) -> str:
    try:
        done = rendering.session.jobs.counts(rendering.submission.id)[JobStatus.SUCCEEDED]
    except PromptmillError:
        done = 0
    return (
        f"Stopped: {done} of {count_of(rendering.submission.total, 'picture')} done and kept. "
        f"Go on with `{rendering.resume_command()}`."
    )


def check_resumable(submission: Submission) -> None:
    """Raise BadInputError if `--resume` cannot complete a submission."""
    match submission.state:
        case SubmissionState.LOADING:
            again = " again with the same --key" if submission.idempotency_key else " its prompts again"
            raise BadInputError(
                f"Submission {submission.id} is not complete; submit{again}, and drop this one with "
                f"`promptmill cancel {submission.id}` if you do not need it."
            )
        case SubmissionState.CANCELLED:
            raise BadInputError(
                f"Submission {submission.id} was cancelled; bring its jobs back with "
                f"`promptmill retry {submission.id}` first."
            )
        case SubmissionState.PRUNING:
            raise BadInputError(being_pruned(submission.id))
