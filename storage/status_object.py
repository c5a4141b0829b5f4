"""What `promptmill status --json` prints of a submission, and what exit hooks and the HTTP API say of it."""

from __future__ import annotations

from typing import Any

from storage.records import JobStatus, Status, SubmissionState

JSON_VERSION = 1  # of every JSON object that commands print


def status_object(status: Status) -> dict[str, Any]:
    """Return the whole object."""
    return {"version": JSON_VERSION, "submission": status_fields(status)}


def derived_state(status: Status) -> str:
    """Return the submission's state as users see it: `done` once every job has reached its end."""
    state = status.submission.state
    ended = (SubmissionState.CANCELLED, SubmissionState.PRUNING)
    return "done" if status.done and state not in ended else str(state)


def status_fields(status: Status) -> dict[str, Any]:
    """Return what `status --json` prints of a submission."""
    submission = status.submission
    return {
        "id": submission.id,
        "name": submission.name,
        "model": submission.model,
        "state": derived_state(status),
        "total": submission.total,
        "counts": {str(name): status.counts.get(name, 0) for name in JobStatus},
        "images_per_second": round(status.images_per_second, 4),
        "eta_seconds": None if status.eta_seconds is None else round(status.eta_seconds, 1),
        "waiting_because": waiting_because(status),
    }


def waiting_because(status: Status) -> str | None:
    """Say why nothing moves; None when something does, or nothing has to."""
    if status.submission.state is SubmissionState.LOADING:
        return "its prompts are not all submitted"
    return status.waiting_because
