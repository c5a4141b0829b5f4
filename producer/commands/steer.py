"""`promptmill cancel`, `retry`, `pause`, `resume` and `adjust`."""

from __future__ import annotations

import click

from producer.models import serving
from producer.options import check_share, submission_argument
from producer.output import count_of, remark
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.records import JobStatus, SubmissionState, being_pruned


@click.command(
    epilog="""\b
Examples:
  promptmill cancel @last
  promptmill cancel otters && promptmill retry otters
"""
)
@submission_argument
@pass_session
def cancel(session: Session, *, submission: str) -> None:
    """Cancel a submission's unfinished jobs; pictures that are there stay.

    Running jobs stop at their next step. `promptmill retry` brings cancelled jobs back.
    """
    found = session.jobs.find_submission(submission)
    if found.state is not SubmissionState.CANCELLED:
        current = session.jobs.status(found.id, lease=session.settings.lease)
        if current.done and found.total:
            remark(f"Nothing to cancel: all {count_of(found.total, 'job')} of {found.id} are finished.")
            return
    session.jobs.cancel(found.id)
    session.jobs.sweep_cancelled(found.id)
    counts = session.jobs.counts(found.id)
    said = f"Cancelled {found.id}: {count_of(counts[JobStatus.CANCELLED], 'job')} cancelled"
    if running := counts[JobStatus.RUNNING]:
        said += f", {running} still running will stop within seconds"
    remark(f"{said}, {counts[JobStatus.SUCCEEDED]} succeeded before.")


@click.command(
    epilog="""\b
Examples:
  promptmill retry @last
  promptmill retry otters:17
"""
)
@click.argument("reference", metavar="ID|JOB")
@pass_session
def retry(session: Session, *, reference: str) -> None:
    """Bring a submission's failed and cancelled jobs back, or only one job, written as ID:INDEX."""
    submission, colon, index = reference.rpartition(":")
    if colon and not index.isdecimal():
        raise BadInputError(f"{reference!r} is no job; write ID:INDEX.")
    found = session.jobs.find_submission(submission if colon else reference)
    again = session.jobs.retry(found.id, index=int(index) if colon else None)
    if not again:
        remark(f"Nothing to retry: no job of {reference} has failed or was cancelled.")
        return
    remark(f"{count_of(again, 'job')} of {found.id} will be rendered again.")
    _remark_no_worker(session, found.model)


@click.command(
    epilog="""\b
Examples:
  promptmill pause otters
"""
)
@submission_argument
@pass_session
def pause(session: Session, *, submission: str) -> None:
    """Start no more jobs of a submission; running ones finish."""
    found = session.jobs.find_submission(submission)
    if found.state in (SubmissionState.CANCELLED, SubmissionState.LOADING):
        raise BadInputError(f"Submission {found.id} is {found.state}; only an open one can be paused.")
    session.jobs.pause(found.id)
    remark(f"Paused {found.id}; `promptmill resume {found.id}` lets it go on.")


@click.command(
    epilog="""\b
Examples:
  promptmill resume otters
"""
)
@submission_argument
@pass_session
def resume(session: Session, *, submission: str) -> None:
    """Let a paused submission go on."""
    found = session.jobs.find_submission(submission)
    match found.state:
        case SubmissionState.LOADING:
            raise BadInputError(
                f"Submission {found.id} is not complete; submit it again with the same --key, or cancel it."
            )
        case SubmissionState.CANCELLED:
            raise BadInputError(f"Submission {found.id} was cancelled; use `promptmill retry {found.id}`.")
        case SubmissionState.PRUNING:
            raise BadInputError(being_pruned(found.id))
        case SubmissionState.OPEN:
            remark(f"Submission {found.id} is not paused.")
        case SubmissionState.PAUSED:
            session.jobs.open_submission(found.id)
            remark(f"Submission {found.id} goes on.")
            _remark_no_worker(session, found.model)


@click.command(
    epilog="""\b
Examples:
  promptmill adjust otters --priority 10
  promptmill adjust @last --weight 0.5 --max-running 16
  promptmill adjust @last --max-running 0
"""
)
@submission_argument
@click.option("--priority", type=int, metavar="N", help="Higher goes first.")
@click.option("--weight", type=float, metavar="X", help="Share among equal priorities.")
@click.option("--max-running", type=int, metavar="N", help="At most N of its jobs at once; 0 for no limit.")
@pass_session
def adjust(
    session: Session,
    *,
    submission: str,
    priority: int | None,
    weight: float | None,
    max_running: int | None,
) -> None:
    """Change a submission's priority, weight or limit; jobs that are queued or running are left alone."""
    if priority is None and weight is None and max_running is None:
        raise BadInputError("Nothing to change; give --priority, --weight or --max-running.")
    check_share(priority=priority, weight=weight, max_running=max_running or None)
    found = session.jobs.find_submission(submission)
    now = session.jobs.adjust(found.id, priority=priority, weight=weight, max_running=max_running)
    limit = "no limit" if now.max_running is None else f"at most {count_of(now.max_running, 'job')} at once"
    remark(f"Submission {now.id}: priority {now.priority}, weight {now.weight:g}, {limit}.")


def _remark_no_worker(session: Session, model: str) -> None:
    if not serving(session.jobs.workers(alive_only=True), model, lease=session.settings.lease):
        remark(f"No worker is running; start one with `promptmill worker start --model {model}`.")
