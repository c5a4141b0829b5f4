"""Cancel, retry, pause, resume, adjust: what each checks and does, and the sentence that it is told with."""

from __future__ import annotations

from producer.models import serving
from producer.options import check_share
from producer.output import count_of
from storage.errors import BadInputError
from storage.jobstore import JobStore
from storage.records import JobStatus, SubmissionState, being_pruned


def cancel(jobs: JobStore, reference: str, *, lease: float) -> str:
    """Cancel a submission's unfinished jobs and say how many."""
    found = jobs.find_submission(reference)
    if found.state is not SubmissionState.CANCELLED:
        current = jobs.status(found.id, lease=lease)
        if current.done and found.total:
            return f"Nothing to cancel: all {count_of(found.total, 'job')} of {found.id} are finished."
    jobs.cancel(found.id)
    jobs.sweep_cancelled(found.id)
    counts = jobs.counts(found.id)
    said = f"Cancelled {found.id}: {count_of(counts[JobStatus.CANCELLED], 'job')} cancelled"
    if running := counts[JobStatus.RUNNING]:
        said += f", {running} still running will stop within seconds"
    return f"{said}, {counts[JobStatus.SUCCEEDED]} succeeded before."


def retry(jobs: JobStore, reference: str, *, lease: float) -> list[str]:
    """Bring failed and cancelled jobs back, those of a submission or one job, and say how many.

    Args:
        jobs: the job store.
        reference: a submission, or a job as `ID:INDEX`.
        lease: seconds without a heartbeat until a worker counts as dead.
    """
    submission, colon, index = reference.rpartition(":")
    if colon and not index.isdecimal():
        raise BadInputError(f"{reference!r} is no job; write ID:INDEX.")
    found = jobs.find_submission(submission if colon else reference)
    again = jobs.retry(found.id, index=int(index) if colon else None)
    if not again:
        return [f"Nothing to retry: no job of {reference} has failed or was cancelled."]
    said = f"{count_of(again, 'job')} of {found.id} will be rendered again."
    return [said, *_no_worker(jobs, found.model, lease=lease)]


def pause(jobs: JobStore, reference: str) -> str:
    """Start no more jobs of a submission; running ones finish."""
    found = jobs.find_submission(reference)
    if found.state in (SubmissionState.CANCELLED, SubmissionState.LOADING):
        raise BadInputError(f"Submission {found.id} is {found.state}; only an open one can be paused.")
    jobs.pause(found.id)
    return f"Paused {found.id}; `promptmill resume {found.id}` lets it go on."


def resume(jobs: JobStore, reference: str, *, lease: float) -> list[str]:
    """Let a paused submission go on."""
    found = jobs.find_submission(reference)
    match found.state:
        case SubmissionState.LOADING:
            raise BadInputError(
                f"Submission {found.id} is not complete; submit it again with the same --key, or cancel it."
            )
        case SubmissionState.CANCELLED:
            raise BadInputError(f"Submission {found.id} was cancelled; use `promptmill retry {found.id}`.")
        case SubmissionState.PRUNING:
            raise BadInputError(being_pruned(found.id))
        case SubmissionState.PAUSED:
            jobs.open_submission(found.id)
            return [f"Submission {found.id} goes on.", *_no_worker(jobs, found.model, lease=lease)]
        case SubmissionState.OPEN:
            return [f"Submission {found.id} is not paused."]


def adjust(
    jobs: JobStore, reference: str, *, priority: int | None, weight: float | None, max_running: int | None
) -> str:
    """Change a submission's priority, weight or limit (0 is none), and say what they are now."""
    if priority is None and weight is None and max_running is None:
        raise BadInputError("Nothing to change; give --priority, --weight or --max-running.")
    check_share(priority=priority, weight=weight, max_running=max_running or None)
    found = jobs.find_submission(reference)
    now = jobs.adjust(found.id, priority=priority, weight=weight, max_running=max_running)
    limit = "no limit" if now.max_running is None else f"at most {count_of(now.max_running, 'job')} at once"
    return f"Submission {now.id}: priority {now.priority}, weight {now.weight:g}, {limit}."


def _no_worker(jobs: JobStore, model: str, *, lease: float) -> list[str]:
    if serving(jobs.workers(alive_only=True), model, lease=lease):
        return []
    return [f"No worker is running; start one with `promptmill worker start --model {model}`."]


ACTIONS = ("cancel", "pause", "resume", "retry")


def act(jobs: JobStore, submission: str, action: str, *, lease: float) -> list[str]:
    """Do one of ACTIONS with a submission, and return what is to be said of it.

    Raises:
        BadInputError: when its state does not allow it.
    """
    match action:
        case "cancel":
            return [cancel(jobs, submission, lease=lease)]
        case "pause":
            return [pause(jobs, submission)]
        case "resume":
            return resume(jobs, submission, lease=lease)
        case "retry":
            return retry(jobs, submission, lease=lease)
    raise ValueError(f"nothing is called {action!r}")
