"""`promptmill doctor`: is everything there, and how to mend what is not.

What a probe does not need is imported when it is called for: it is asked every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from producer.checks.probe import PROBES, probe
from producer.session import Session, pass_session
from storage.errors import BadInputError, DifferenceError, UnreachableError


class _Submission(click.ParamType[str]):
    """A submission's reference, whose completion is loaded when somebody presses Tab."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """See `producer.options.SubmissionReference`."""
        from producer.options import SubmissionReference  # noqa: PLC0415  (loads all that jobs can be)

        return list(SubmissionReference().shell_complete(ctx, param, incomplete))


@click.command(
    epilog="""\b
Examples:
  promptmill doctor
  promptmill doctor --json | jq '.checks[] | select(.state != "ok")'
  promptmill doctor --render --model sd15
  promptmill doctor --audit
  promptmill doctor --repair otters
  promptmill doctor --audit --repair
  promptmill doctor --probe readiness
"""
)
@click.argument("submissions", nargs=-1, metavar="[ID]...", type=_Submission())
@click.option(
    "--render", "renders", is_flag=True, help="Also render a self-test, and hold it against earlier ones."
)
@click.option(
    "--model", metavar="NAME=REPO_OR_PATH[@REVISION]", help="Of the self-test. Default: the one of `render`."
)
@click.option(
    "--audit", "audits", is_flag=True, help="Hold every job against its picture, every file against its row."
)
@click.option(
    "--repair",
    "mend",
    is_flag=True,
    help="Verify the pictures of ID, or all, and mend them; with --audit also remove files without a row.",
)
@click.option("--yes", is_flag=True, help="Do not ask before mending or removing.")
@click.option(
    "--probe",
    "what",
    type=click.Choice(PROBES),
    help="Only say whether this host's supervisor lives, or its worker renders: for containers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
def doctor(  # noqa: C901  (a flag a part)
    session: Session,
    *,
    submissions: tuple[str, ...],
    renders: bool,
    model: str | None,
    audits: bool,
    mend: bool,
    yes: bool,
    what: str | None,
    as_json: bool,
) -> None:
    """Check the installation, and say how to mend it; exit code 3 when something is broken.

    With --render, a small picture is rendered twice, by a worker that serves the model or one that is started
    for it. The first self-test on a kind of worker is kept in the database; every later one with the same
    numerics (device, driver's libraries, versions, lanes) has to have the same bytes, else exit code 1.

    With --audit, also every job of every submission: each that succeeded has one row, whose file is there
    with the bytes that the row tells of; each that failed says why; and each file has a row. A broken promise
    ends with exit code 1. Files without a row are what killed workers left. Submissions whose submit was
    killed are listed, too.

    With --repair, pictures that `promptmill verify` finds wrong or missing are mended: put back where their
    bytes lie elsewhere in the store, else rendered again, by a worker that serves the model or one that is
    started for it. What cannot be mended is listed, and ends with exit code 1.

    With --probe, nothing is asked but the sign of life that supervisors leave in the home: exit code 0 or 1
    within a moment, whether or not the database can be reached.
    """
    if what is not None:
        _probe_only(session, what, others=any((submissions, renders, model, audits, mend, yes, as_json)))
        return
    if (submissions or yes) and not mend:
        raise BadInputError("An ID and --yes belong to --repair; add it, or leave them out.")
    if model is not None and not renders:
        raise BadInputError("--model belongs to --render; add it, or leave it out.")
    from producer.checks.examine import examine  # noqa: PLC0415  (probes need none of it)
    from producer.checks.finding import BROKEN  # noqa: PLC0415  (likewise)
    from producer.commands.audit import audit_everything  # noqa: PLC0415  (likewise)
    from producer.commands.repair import repair_pictures  # noqa: PLC0415  (likewise)
    from producer.output import count_of, print_json, print_table  # noqa: PLC0415  (likewise)

    findings = list(examine(session))
    checks: dict[str, Any] = {"checks": [asdict(finding) for finding in findings]}
    if not as_json:
        rows = [[finding.check, finding.state, finding.detail] for finding in findings]
        print_table(["CHECK", "STATE", "DETAIL"], rows)
    broken = [finding.check for finding in findings if finding.state == BROKEN]
    wrong = []
    # A damaged model keeps nobody from looking at pictures; whoever would render with it is told so again.
    if not set(broken) - {"models"}:
        report = checks if as_json else None
        if renders:
            wrong += _differences(lambda: _render(session, model, report))
        if mend:
            wrong += _differences(lambda: repair_pictures(session, submissions, yes=yes, report=report))
        if audits:
            wrong += _differences(lambda: audit_everything(session, mend=mend, yes=yes, report=report))
    if as_json:
        print_json(checks)
    if wrong:
        raise DifferenceError(" ".join(wrong))
    if broken:
        raise UnreachableError(
            f"{count_of(len(broken), 'check')} failed ({', '.join(broken)}); mend as said above."
        )


def _probe_only(session: Session, what: str, *, others: bool) -> None:
    if others:
        raise BadInputError("--probe goes with nothing else; leave the rest out.")
    click.echo(probe(session.settings, what))


def _render(session: Session, model: str | None, report: dict[str, Any] | None) -> None:
    from producer.output import remark  # noqa: PLC0415  (probes need none of it)
    from producer.selftest import self_test  # noqa: PLC0415  (likewise)

    found = self_test(session, model)
    if report is not None:
        report["self_test"] = asdict(found)
    if found.same is False:
        raise DifferenceError(f"The self-test failed: {found.detail}.")
    remark(f"Self-test: {found.detail}.")


def _differences(part: Callable[[], None]) -> list[str]:
    """Run a part, and return what it found wrong, so that the next one runs as well."""
    try:
        part()
    except DifferenceError as error:
        return [str(error)]
    return []
