"""`promptmill status`, `list` and `show`: what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from producer.described import image_fields, job_fields, submission_row
from producer.follow import submission_fields
from producer.on_done import told_words
from producer.options import LAST, SubmissionReference
from producer.output import listing, minute, print_fields, print_json, record
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.safe_url import safe_store_url
from storage.status_object import status_fields


@click.command(
    epilog="""\b
Examples:
  promptmill status
  promptmill status otters
  promptmill status @last --json | jq .submission.counts
"""
)
@click.argument("submission", metavar="[ID]", default=LAST, type=SubmissionReference())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
def status(session: Session, *, submission: str, as_json: bool) -> None:
    """Show how far a submission is: the newest one, where no ID is given.

    `waiting because` explains why nothing moves: no live worker serves the model, the submission is paused,
    or its jobs back off after a failure.
    """
    found = session.jobs.find_submission(submission)
    current = session.jobs.status(found.id, lease=session.settings.lease)
    fields = status_fields(current)
    if as_json:
        print_json({"submission": fields})
    else:
        counts = {name: number for name, number in fields.pop("counts").items() if number}
        speed = {"images_per_second": None if current.done else fields["images_per_second"] or None}
        told = {"on_done": "; ".join(told_words(hook) for hook in session.jobs.hooks(found.id))}
        print_fields(fields | {"counts": counts} | speed | submission_fields(current) | told)


@click.command(
    name="list",
    epilog="""\b
Examples:
  promptmill list
  promptmill list --limit 5 --json
""",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    metavar="N",
    help="At most so many.",
)
@listing(
    "submissions",
    {
        "id": "ID",
        "name": "NAME",
        "model": "MODEL",
        "state": "STATE",
        "total": "JOBS",
        "succeeded": "DONE",
        "failed": "FAILED",
        "created": "CREATED (UTC)",
        "source": "SOURCE",
    },
    short={"created": minute},
    empty="There are no submissions yet; make one with `promptmill submit`.",
)
@pass_session
def list_submissions(session: Session, *, limit: int) -> Iterator[dict[str, Any]]:
    """List the newest submissions, newest first."""
    for submission in session.jobs.submissions(limit=limit):
        yield submission_row(session.jobs.status(submission.id, lease=session.settings.lease))


@click.command(
    epilog="""\b
Examples:
  promptmill show @last:0
  promptmill show otters:17 --json
"""
)
@click.argument("job", metavar="JOB")
@record("job")
@pass_session
def show(session: Session, *, job: str) -> dict[str, Any]:
    """Show everything known about one job, written as ID:INDEX; the first job has index 0."""
    reference, colon, index = job.rpartition(":")
    if not colon:
        found = session.jobs.find_submission(job)  # says so itself where there is none
        raise BadInputError(
            f"{job} is a submission; name one of its {found.total} jobs, like {job}:0, or see "
            f"`promptmill status {job}`."
        )
    if not index.isdecimal():
        raise BadInputError(f"{job!r} is no job; write ID:INDEX, like {reference or LAST}:0.")
    return _fields(session, job)


def _fields(session: Session, reference: str) -> dict[str, Any]:
    job = session.jobs.find_job(reference)
    fields = job_fields(job)
    if job.image is None:
        return fields | {"image": None}
    where = {"image": job.image.key, "image_path": picture_path(session, job.image.key)}
    return fields | where | image_fields(job)


def picture_path(session: Session, key: str) -> str:
    """Return where the picture store keeps a key, as people find it."""
    if session.settings.store_url:
        return f"{safe_store_url(session.settings.store_url).rstrip('/')}/{key}"
    return str(session.settings.images_path / key)
