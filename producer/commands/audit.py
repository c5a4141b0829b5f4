"""The part of `promptmill doctor` that audits the whole home: every job, every file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from producer.audit import Finding, Kind, audit, remove_files_without_a_row
from producer.output import count_of, print_table, remark
from producer.session import Session
from storage.errors import BadInputError, DifferenceError


def audit_everything(session: Session, *, mend: bool, yes: bool, report: dict[str, Any] | None) -> None:
    """Audit, print what was found, and with `mend` remove the files without a row.

    Args:
        session: of the command.
        mend: remove them.
        yes: do not ask.
        report: what `--json` will print, to add to; None for a table.

    Raises:
        DifferenceError: when a promise is broken.
        BadInputError: when there is something to remove and nobody can be asked.
    """
    findings = list(audit(session.jobs, session.images))
    if report is None and findings:
        rows = [[str(one.kind), one.where, one.detail] for one in findings]
        print_table(["FOUND", "WHERE", "DETAIL"], rows)
    removed = _remove(session, findings, yes=yes) if mend else []
    if report is not None:
        found = [{**asdict(one), "wrong": one.is_wrong} for one in findings]
        report["audit"] = {"findings": found, "removed": removed}
    wrong = Counter(one.kind for one in findings if one.is_wrong)
    if wrong:
        kinds = ", ".join(f"{count} {kind}" for kind, count in wrong.items())
        total = count_of(sum(wrong.values()), "promise")
        raise DifferenceError(f"{total} broken ({kinds}); `promptmill show JOB` says what is known of each.")
    remark("Every job that has ended has its one picture or its one reason.")


def _remove(session: Session, findings: Sequence[Finding], *, yes: bool) -> list[str]:
    left = [one for one in findings if one.kind is Kind.NO_ROW]
    if not left:
        return []
    files = count_of(len(left), "file")
    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise BadInputError(f"Removing {files} needs --yes where nobody can be asked.")
    if not yes and not click.confirm(f"Remove {files} without a row?", err=True):
        remark("Nothing was removed.")
        return []
    removed = list(remove_files_without_a_row(session.jobs, session.images, left))
    remark(f"Removed {count_of(len(removed), 'file')} without a row.")
    return removed
