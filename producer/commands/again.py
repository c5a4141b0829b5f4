"""`promptmill reproduce` and `verify`: are the pictures still what they were?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from producer.comparing import Outcome
from producer.options import SubmissionReference, given_flags
from producer.originals import originals
from producer.output import count_of, print_json, remark
from producer.recorded import Wishes, check_all_named
from producer.reproducing import Result, plan, reproduce, result_fields
from producer.session import Session, pass_session
from producer.verifying import checked_fields, chosen_submissions, noteworthy, print_wrong, summary
from producer.worker_flags import worker_flags
from storage.errors import BadInputError, DifferenceError
from storage.records import JobStatus

FEW = 20  # pictures that are named one by one where all differ alike


@click.command(
    name="reproduce",
    epilog="""\b
Examples:
  promptmill reproduce @last:0
  promptmill reproduce pictures/000003-a-red-fox.png
  promptmill reproduce otters --lanes 4 --json
""",
)
@click.argument("references", nargs=-1, required=True, metavar="FILE|JOB|ID...")
@click.option(
    "--model",
    metavar="NAME=REPO_OR_PATH[@REVISION]",
    help="Where the model's files are. Default: as configured, a repo at the recorded commit.",
)
@worker_flags
@click.option("--keep", is_flag=True, help="Leave the new pictures, as a submission of their own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
@click.pass_context
def reproduce_command(
    ctx: click.Context,
    session: Session,
    /,
    *,
    references: tuple[str, ...],
    model: str | None,
    keep: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Render pictures again, and say whether they come out the same.

    A picture is named by its file, wherever it was copied to, or by its job; an ID stands for all pictures of
    a submission. The new one is byte-identical, pixel-identical (the same picture in other bytes), or
    different: by how much, and what differs in the record of how it was computed.

    A worker that serves the model renders them; where there is none, one is started as it is recorded: mode,
    dtype, lanes, threads. A flag beats what is recorded. What was rendered is removed afterwards.
    """
    typed = given_flags(ctx, [*flags, "model"])
    names = frozenset(name for name in flags if given_flags(ctx, [name]))
    wishes = Wishes(flags=flags, typed=names, model=model)
    found = [original for reference in references for original in originals(session, reference)]
    check_all_named((original.model for original in found), wishes)
    tasks = plan(session, found, wishes, typed)
    try:
        for task in tasks:
            reproduce(session, task, keep=keep)
    finally:  # also where a later worker could not start: what was compared is worth knowing
        results = [result for task in tasks for result in task.results]
        kept = [task.submission.id for task in tasks if task.submission and keep]
        if as_json:
            fields = {"kept": kept, "results": [result_fields(one) for one in results]}
            print_json({"reproduced": _totals(results) | fields})
        elif results:
            _print_results(results)
    unequal = sum(not _equal(one) for one in results)
    if unequal:
        verb = "is" if unequal == 1 else "are"
        raise DifferenceError(
            f"{unequal:,} of {count_of(len(results), 'picture')} {verb} not byte-identical."
        )


def _equal(one: Result) -> bool:
    return one.likeness.outcome is Outcome.BYTES


def _totals(results: Sequence[Result]) -> dict[str, int]:
    counts = {
        outcome.replace("-", "_").replace(" ", "_"): sum(one.likeness.outcome is outcome for one in results)
        for outcome in Outcome
    }
    return {"pictures": len(results), **counts}


def _print_results(results: Sequence[Result]) -> None:
    """Print a line a picture that is not byte-identical, what differs, and how many are."""
    alike: dict[tuple[str, ...], list[Result]] = {}
    for one in results:
        if not _equal(one):
            alike.setdefault(tuple(map(str, one.changes)), []).append(one)
    for changed, ones in alike.items():
        for one in ones[:FEW]:
            click.echo(f"{one.original.name}  {_said(one)}")
        if len(ones) > FEW:
            click.echo(f"… and {len(ones) - FEW:,} more like these")
        for line in _reasons(ones, changed):
            click.echo(f"  {line}")
    for changed in {tuple(map(str, one.changes)): None for one in results if _equal(one) and one.changes}:
        click.echo("The same bytes, although the worker is not as recorded:")
        click.echo("".join(f"  {line}\n" for line in changed), nl=False)
    for outcome in Outcome:
        count = sum(one.likeness.outcome is outcome for one in results)
        if count or outcome is Outcome.BYTES:
            click.echo(f"{outcome.capitalize()}: {count:,} of {count_of(len(results), 'picture')}")


def _said(one: Result) -> str:
    picture = one.likeness
    said = str(picture.outcome)
    if picture.max_difference and picture.psnr_db is not None:
        said += f": at most {picture.max_difference} of 255, PSNR {picture.psnr_db:.1f} dB"
    if picture.detail:
        said += f": {picture.detail}"
    return said + ("  THE PROMISE OF THE SAME BYTES IS BROKEN" if one.broken else "")


def _reasons(ones: Sequence[Result], changed: tuple[str, ...]) -> Iterator[str]:
    """Say why these pictures may differ; they all have the same changes."""
    yield from changed
    texts = sorted({key for one in ones for key in one.likeness.texts})
    if texts:
        yield f"the text in the file differs: {', '.join(texts)}"
    if any(one.broken for one in ones):
        yield (
            "Nothing that is recorded of the worker differs, so the bytes should not either: please report "
            "it, with `promptmill show JOB --json` of both (--keep leaves the new one)."
        )
    elif not changed and any(one.original.numerics.get("mode") == "throughput" for one in ones):
        yield "mode throughput promises no bytes"


@click.command(
    name="verify",
    epilog="""\b
Examples:
  promptmill verify otters
  promptmill verify --all --json
""",
)
@click.argument("submissions", nargs=-1, metavar="[ID]...", type=SubmissionReference())
@click.option("--all", "everything", is_flag=True, help="Every submission that there is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@pass_session
def verify_command(
    session: Session, *, submissions: tuple[str, ...], everything: bool, as_json: bool
) -> None:
    """Hash every stored picture again, and name those that are not what their row tells of.

    Missing files, changed bytes and swapped files are found; `promptmill doctor --repair` mends them. Ends
    with exit code 1 when anything is wrong, and 3 when the store cannot be asked.
    """
    if everything == bool(submissions):
        raise BadInputError("Name submissions to verify, or write --all.")
    chosen = chosen_submissions(session, submissions)
    checks = list(noteworthy(session, chosen))
    wrong = [one for one in checks if one.fault is not None]
    pictures = sum(session.jobs.counts(one.id)[JobStatus.SUCCEEDED] for one in chosen)
    others = [one.job.label for one in checks if one.fault is None]
    if as_json:
        print_json(
            {
                "verified": {
                    "submissions": [one.id for one in chosen],
                    "pictures": pictures,
                    "right": pictures - len(wrong),
                    "wrong": [checked_fields(one) for one in wrong],
                    "rendered_again_with_other_bytes": others,
                }
            }
        )
    else:
        print_wrong(wrong)
        remark(summary(pictures=pictures, wrong=len(wrong), submissions=len(chosen)))
        if others:
            what = count_of(len(others), "picture")
            remark(f"{what} came out with other bytes after a repair: {', '.join(others[:FEW])}.")
    if wrong:
        ids = "" if everything else " " + " ".join(one.id for one in chosen)
        raise DifferenceError(
            f"{count_of(len(wrong), 'picture')} not as recorded; `promptmill doctor --repair{ids}` mends "
            f"what can be mended."
        )
