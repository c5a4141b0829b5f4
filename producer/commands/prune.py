"""`promptmill prune`: remove submissions, rows and files together."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from producer.counted import counted
from producer.options import SubmissionReference
from producer.output import count_of, minute, print_table, remark, size_of, timestamp
from producer.pruning import ALL, check, older_than, parse_age, prune
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.records import Holdings, Submission, SubmissionState
from storage.status_object import derived_state


@click.command(
    name="prune",
    epilog="""\b
Examples:
  promptmill prune otters
  promptmill prune --older-than 30d --dry-run
  promptmill prune --older-than 30d --yes
""",
)
@click.argument("submissions", nargs=-1, metavar="[ID]...", type=SubmissionReference())
@click.option("--older-than", "age", metavar="AGE", help="All that were submitted so long ago: 12h, 30d, 8w.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def prune_command(
    session: Session, *, submissions: tuple[str, ...], age: str | None, dry_run: bool, yes: bool
) -> None:
    """Remove submissions: their pictures, then their rows. There is no way back.

    What is unfinished stays, unless it was cancelled. A prune that was killed is completed by the next one,
    whatever that is asked to remove. Exported pictures are copies, and stay.
    """
    if bool(submissions) == (age is not None):
        raise BadInputError("Name submissions to remove, or give --older-than; one of the two.")
    chosen = _chosen(session, submissions, age)
    if not chosen:
        remark("There is nothing to remove.")
        return
    for found in chosen:
        check(session, found)
    held = {found.id: session.jobs.holdings(found.id) for found in chosen}
    _print_going(session, chosen, held)
    question = f"Remove {_total(list(held.values()))}?"
    if dry_run or not confirmed(question, yes=yes, unasked="--dry-run only shows what would go"):
        remark("Nothing was removed.")
        return
    for found in chosen:
        parts = prune(session, found)
        for _ in counted(parts, total=held[found.id].jobs // 1000 + 1, title=f"removing {found.id}"):
            pass
    room = session.jobs.compact()
    given = room.before - room.after
    smaller = f" The database is {size_of(given)} smaller." if given > 0 else ""
    remark(f"Removed {_total(list(held.values()))}.{smaller}")


def confirmed(question: str, *, yes: bool, unasked: str) -> bool:
    """Ask on a terminal; elsewhere --yes has to say it.

    Raises:
        BadInputError: when nobody can be asked.
    """
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise BadInputError(f"Add --yes where nobody can be asked; {unasked}.")
    return click.confirm(question, err=True)


def _chosen(session: Session, references: Sequence[str], age: str | None) -> list[Submission]:
    """Return what is named or old enough, and what earlier prunes have left half-way."""
    if age is None:
        named = [session.jobs.find_submission(reference) for reference in references]
    else:
        named, unfinished = older_than(session.jobs, parse_age(age))
        if unfinished:
            ids = ", ".join(found.id for found in unfinished)
            remark(f"Not finished, so they stay: {ids}; `promptmill cancel` gives one up.")
    begun = [one for one in session.jobs.submissions(limit=ALL) if one.state is SubmissionState.PRUNING]
    return list({found.id: found for found in (*named, *begun)}.values())


def _print_going(session: Session, chosen: Sequence[Submission], held: dict[str, Holdings]) -> None:
    rows = []
    for found in chosen:
        holds = held[found.id]
        state = derived_state(session.jobs.status(found.id, lease=session.settings.lease))
        numbers = [f"{holds.jobs:,}", f"{holds.pictures:,}", size_of(holds.bytes)]
        rows.append([found.id, found.name or "", state, *numbers, minute(timestamp(found.created_at) or "")])
    print_table(["ID", "NAME", "STATE", "JOBS", "PICTURES", "SIZE", "CREATED (UTC)"], rows)


def _total(held: Sequence[Holdings]) -> str:
    pictures = count_of(sum(one.pictures for one in held), "picture")
    jobs = count_of(sum(one.jobs for one in held), "job")
    size = size_of(sum(one.bytes for one in held))
    return f"{count_of(len(held), 'submission')} with {jobs} and {pictures}, {size}"
