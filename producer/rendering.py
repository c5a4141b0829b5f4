"""`render` step by step: a worker where none serves the model, progress, pictures, and everything stopped."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from producer.background_worker import BackgroundWorker, check_worker_extra
from producer.contact_sheet import MAX_PAGES, PER_PAGE, write_contact_sheets
from producer.follow import check_all_succeeded, display, follow
from producer.models import serving
from producer.output import count_of, remark
from producer.pictures import claim_folder, write_pictures
from producer.session import Session
from storage.errors import BadInputError, PromptmillError, UnreachableError
from storage.models import configured_models
from storage.records import JobStatus, Status, Submission, SubmissionState, no_live_worker

if TYPE_CHECKING:
    from storage.models import ModelReference
    from storage.worker_options import WorkerOptions

LOOK_INTERVAL = 2.0  # seconds between looks whether somebody else's worker still serves the model


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
    company = _Company(rendering)
    try:
        claim_folder(rendering.out, submission)
        with _terminated_like_interrupted():
            status = _follow(rendering, company)
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


class _Company:
    """The worker that `render` has started, if any; starts one when nobody serves the model."""

    def __init__(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._own: BackgroundWorker | None = None
        self._next_look = 0.0

    def see_to_it(self) -> None:
        """Make sure that a worker serves the model; raise what ended our own."""
        if self._own is not None:
            self._own.check()
            return
        now = time.monotonic()
        if now < self._next_look:
            return
        settings = self._rendering.session.settings
        workers = self._rendering.session.jobs.workers(alive_only=True)
        others = serving(workers, self._rendering.model.name, lease=settings.lease)
        if not others:
            check_worker_extra()
            self._own = BackgroundWorker(self._rendering.options, settings)
        elif not self._next_look:
            self._remark_others(others[0].name)
        self._next_look = now + LOOK_INTERVAL

    def _remark_others(self, name: str) -> None:
        idle = ", ".join(self._rendering.given)
        warning = f" Warning: {idle} would only concern a worker of our own." if idle else ""
        remark(f"Worker {name} serves model {self._rendering.model.name} already and renders this.{warning}")

    def explained(self, status: Status) -> Status:
        """Say that our own worker is starting where the database knows of none yet."""
        if self._own is None or status.waiting_because != no_live_worker(status.submission.model):
            return status
        return replace(status, waiting_because="the worker is starting")

    def ask_to_stop(self) -> None:
        if self._own is not None:
            self._own.ask_to_stop()

    def stop(self, *, said: bool = False) -> None:
        if self._own is not None:
            if said:
                remark("Stopping …")  # a worker that is still loading takes some seconds
            self._own.stop()
            self._own = None


def _follow(rendering: Rendering, company: _Company) -> Status:
    """Follow the submission to its end, and see to it that somebody works on it."""
    session, submission = rendering.session, rendering.submission
    with display(title="rendering") as shown:
        for status in follow(session.jobs, submission.id, lease=session.settings.lease):
            if not status.done:
                _check_state(status)
                company.see_to_it()
            shown.update(company.explained(status))
    return status


def _check_state(status: Status) -> None:
    if status.submission.state is SubmissionState.PAUSED:
        reason = status.submission.note or "somebody paused it."
        raise UnreachableError(f"The submission was paused: {reason.rstrip('.')}.")


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


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a rendering in order, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
