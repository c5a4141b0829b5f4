"""`promptmill watch` and `wait`: follow a submission to its end."""

from __future__ import annotations

import json
import math

import click

from producer.commands.submit import wait_for
from producer.follow import check_all_succeeded, follow
from producer.options import LAST, SubmissionReference
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.status_object import status_object


@click.command(
    epilog="""\b
Examples:
  promptmill watch
  promptmill watch otters --jsonl
"""
)
@click.argument("submission", metavar="[ID]", default=LAST, type=SubmissionReference())
@click.option("--jsonl", is_flag=True, help="Print a status object a line, as `status --json` does.")
@pass_session
def watch(session: Session, *, submission: str, jsonl: bool) -> None:
    """Follow a submission live until it is done; the newest one, where no ID is given.

    Ctrl-C ends the watching, not the rendering.
    """
    found = session.jobs.find_submission(submission)
    if not jsonl:
        wait_for(session, found)
        return
    for status in follow(session.jobs, found.id, lease=session.settings.lease):
        click.echo(json.dumps(status_object(status), ensure_ascii=False))
    check_all_succeeded(session.jobs, status)


@click.command(
    epilog="""\b
Examples:
  promptmill wait @last
  promptmill wait otters --timeout 600 && promptmill export otters --to pictures
"""
)
@click.argument("submission", metavar="[ID]", default=LAST, type=SubmissionReference())
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long, with exit code 4.")
@pass_session
def wait(session: Session, *, submission: str, timeout: float | None) -> None:
    """Wait until a submission is done; the newest one, where no ID is given.

    Ends with exit code 1 when jobs failed or were cancelled.
    """
    if timeout is not None and not (math.isfinite(timeout) and timeout >= 0):
        raise BadInputError(f"--timeout {timeout} is no time to wait; give seconds.")
    wait_for(session, session.jobs.find_submission(submission), timeout=timeout)
