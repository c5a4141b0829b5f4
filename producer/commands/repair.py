"""The part of `promptmill doctor` that mends pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from producer.commands.prune import confirmed
from producer.output import count_of, print_table, remark
from producer.repairing import Mended, Mending, repair
from producer.session import Session
from producer.verifying import checked_fields, chosen_submissions, noteworthy, print_wrong, summary
from storage.errors import DifferenceError
from storage.records import JobStatus


def repair_pictures(
    session: Session, references: Sequence[str], *, yes: bool, report: dict[str, Any] | None
) -> None:
    """Verify, ask, mend, and print what became of each broken picture.

    Args:
        session: of the command.
        references: of submissions; none stands for all.
        yes: do not ask.
        report: what `--json` will print, to add to; None for a table.

    Raises:
        DifferenceError: when something could not be mended.
        BadInputError: when there is something to mend and nobody can be asked.
    """
    chosen = chosen_submissions(session, references)
    wrong = [one for one in noteworthy(session, chosen) if one.fault is not None]
    pictures = sum(session.jobs.counts(one.id)[JobStatus.SUCCEEDED] for one in chosen)
    remark(summary(pictures=pictures, wrong=len(wrong), submissions=len(chosen)))
    mended: list[Mended] = []
    if wrong:
        if report is None:
            print_wrong(wrong)
        question = f"Mend {count_of(len(wrong), 'picture')}? What lies nowhere else is rendered again."
        if not confirmed(question, yes=yes, unasked="`promptmill verify` only shows what is wrong"):
            if report is not None:
                report["repair"] = {"pictures": pictures, "mended": []}
            raise DifferenceError(f"{count_of(len(wrong), 'picture')} not as recorded; nothing was mended.")
        mended = list(repair(session, wrong))
    if report is not None:
        report["repair"] = {"pictures": pictures, "mended": list(map(_fields, mended))}
    elif mended:
        click.echo()
        rows = [[one.checked.job.label, str(one.mending), one.detail] for one in mended]
        print_table(["JOB", "RESULT", "DETAIL"], rows)
    failed = sum(one.mending is Mending.NONE for one in mended)
    if failed:
        raise DifferenceError(f"{count_of(failed, 'picture')} could not be mended; the reasons are above.")


def _fields(one: Mended) -> dict[str, Any]:
    return {**checked_fields(one.checked), "result": str(one.mending), "result_detail": one.detail or None}
