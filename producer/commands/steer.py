"""`promptmill cancel`, `retry`, `pause`, `resume` and `adjust`."""

from __future__ import annotations

import click

from producer import steering
from producer.options import submission_argument
from producer.output import remark
from producer.session import Session, pass_session


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
    remark(steering.cancel(session.jobs, submission, lease=session.settings.lease))


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
    for said in steering.retry(session.jobs, reference, lease=session.settings.lease):
        remark(said)


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
    remark(steering.pause(session.jobs, submission))


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
    for said in steering.resume(session.jobs, submission, lease=session.settings.lease):
        remark(said)


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
    """Change a submission's priority, weight or limit; jobs that are running are left alone."""
    said = steering.adjust(
        session.jobs, submission, priority=priority, weight=weight, max_running=max_running
    )
    remark(said)
