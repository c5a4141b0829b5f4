"""Somebody who renders: a worker that serves the model already, else one of our own, for as long as it takes.

`render` completes submissions in its company, `reproduce` and `doctor --repair` as well.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from producer.background_worker import BackgroundWorker, check_worker_extra
from producer.follow import display, follow
from producer.models import resolve_model, serving
from producer.output import remark
from producer.session import Session
from storage.errors import BadInputError, UnreachableError
from storage.records import Status, Submission, SubmissionState, Worker, no_live_worker

if TYPE_CHECKING:
    from storage.worker_options import WorkerOptions

LOOK_INTERVAL = 2.0  # seconds between looks whether somebody else's worker still serves the model


def unknown_source(model: str) -> str:
    """Say why nobody can render with a model: no worker serves it, and its files are not known here."""
    return (
        f"No live worker serves model {model}, and it is not configured; set "
        f"PROMPTMILL_MODELS={model}=REPO_OR_PATH, or start a worker with it."
    )


class Company:
    """The worker that a command has started, if any; starts one when nobody serves the model.

    Args:
        session: of the command.
        model: name of the model that has to be rendered.
        options: of the worker to start where none serves the model; None where nobody knows its files.
        given: worker options that the user typed, to say when a running worker makes them idle.
        environment: what our own worker gets besides our environment.
    """

    def __init__(
        self,
        session: Session,
        model: str,
        options: WorkerOptions | None,
        *,
        given: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.session = session
        self._model = model
        self._options = options
        self._given = given
        self._environment = environment or {}
        self._own: BackgroundWorker | None = None
        self._next_look = 0.0

    def check(self) -> None:
        """Check that somebody can render, before anything is written.

        Raises:
            BadInputError: when no worker serves the model, and nobody knows here where its files are.
            ModelLoadError: likewise, and there is nothing where they should be.
        """
        if self._others():
            return
        if self._options is None:
            raise BadInputError(unknown_source(self._model))
        check_worker_extra()
        resolve_model(self.session.settings, self._options.model)

    def see_to_it(self) -> None:
        """Make sure that a worker serves the model; raise what ended our own."""
        if self._own is not None:
            self._own.check()
            return
        now = time.monotonic()
        if now < self._next_look:
            return
        others = self._others()
        if not others:
            if self._options is None:
                raise BadInputError(unknown_source(self._model))
            check_worker_extra()
            self._own = BackgroundWorker(self._options, self.session.settings, environment=self._environment)
        elif not self._next_look:
            self._remark_others(others[0].name)
        self._next_look = now + LOOK_INTERVAL

    def _others(self) -> list[Worker]:
        workers = self.session.jobs.workers(alive_only=True)
        return serving(workers, self._model, lease=self.session.settings.lease)

    def _remark_others(self, name: str) -> None:
        idle = ", ".join(self._given)
        warning = f" Warning: {idle} would only concern a worker of our own." if idle else ""
        remark(f"Worker {name} serves model {self._model} already and renders this.{warning}")

    def explained(self, status: Status) -> Status:
        """Say that our own worker is starting where the database knows of none yet."""
        if self._own is None or status.waiting_because != no_live_worker(status.submission.model):
            return status
        return replace(status, waiting_because="the worker is starting")

    def ask_to_stop(self) -> None:
        """Let our own worker end, and do not wait for it."""
        if self._own is not None:
            self._own.ask_to_stop()

    def stop(self, *, said: bool = False) -> None:
        """End our own worker, and wait for it; `said` tells the user why that takes a moment."""
        if self._own is not None:
            if said:
                remark("Stopping …")  # a worker that is still loading takes some seconds
            self._own.stop()
            self._own = None


def follow_in(
    company: Company,
    submission: Submission,
    *,
    title: str,
    enough: Callable[[], bool] = lambda: False,
) -> Status:
    """Follow a submission to its end, and see to it that somebody works on it.

    Args:
        company: renders it.
        submission: what is followed.
        title: of the progress bar.
        enough: asked at every look, ends the following early.

    Raises:
        UnreachableError: when it was paused, by somebody or by a fault of the surroundings.
    """
    session = company.session
    with display(title=title) as shown:
        for status in follow(session.jobs, submission.id, lease=session.settings.lease):
            if not status.done:
                if enough():
                    break
                _check_state(status)
                company.see_to_it()
            shown.update(company.explained(status))
    return status


def _check_state(status: Status) -> None:
    if status.submission.state is SubmissionState.PAUSED:
        reason = status.submission.note or "somebody paused it."
        raise UnreachableError(f"The submission was paused: {reason.rstrip('.')}.")


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
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
