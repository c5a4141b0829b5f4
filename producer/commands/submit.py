"""`promptmill submit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from producer.cli import silence_stdout
from producer.follow import check_all_succeeded, display, follow
from producer.input_flags import input_flags
from producer.models import KnownModel, choose_model, known_models, named_model
from producer.on_done import OnDone, read_on_done, run_command
from producer.options import dry_run_flag, job_flags, prompt_options, rewriting_flags, submission_flags
from producer.ordering import order_of, read_asked
from producer.output import count_of, remark
from producer.preview import preview
from producer.session import Session, pass_session
from producer.submitting import submit_order
from storage.records import Submission


@click.command(
    epilog="""\b
Examples:
  promptmill submit prompts.txt
  promptmill submit -p "A watercolor painting of an otter" --images 4 --seed 42
  promptmill submit prompts.txt --sampler "DPM++ 2M Karras" --steps 20 --cfg 5 --size 512x768
  promptmill submit PartiPrompts.tsv more.jsonl --skip-bad
  promptmill submit prompts.txt --sweep guidance=3,5,7.5 --sweep steps=10..50:10 --dry-run
  promptmill submit longer-list.txt --seed 42 --reuse
  promptmill submit -p "The same otter, in oil" --init-image otter.png --strength 0.5 --images 4
  grep otter prompts.txt | promptmill submit - --name otters --wait
  id=$(promptmill submit prompts.txt --key nightly-2026-01-31)
  promptmill submit prompts.txt --on-done https://example.org/rendered
  promptmill submit prompts.txt --wait --on-done "jq .submission.counts"
"""
)
@prompt_options
@click.option("--model", metavar="NAME", help="Default: the only known one; see `promptmill models`.")
@job_flags
@input_flags
@rewriting_flags
@submission_flags
@dry_run_flag
@click.option("--wait", is_flag=True, help="Wait until all pictures are there.")
@click.option(
    "--on-done",
    metavar="URL|COMMAND",
    help="What hears of its end, as `status --json` prints it: a URL by a POST from a worker's host; a "
    "command, with --wait, on its standard input.",
)
@pass_session
def submit(
    session: Session,
    /,
    *,
    model: str | None,
    dry_run: bool,
    wait: bool,
    on_done: str | None,
    **flags: Any,
) -> None:
    """Submit prompts to be rendered by workers, and print the submission's id.

    A FILE is text, one prompt a line with kohya's or A1111's options if any, or CSV, TSV, JSON Lines, JSON or
    Parquet with columns such as prompt, negative, seed, steps; - is standard input. What a line says beats
    the flags. Everything is checked before anything is written. The id is printed as soon as the submission
    is safe in the database; no worker and no Redis is needed for that.

    A setting that is not given is the model's recommendation (`promptmill models`), else the general default.
    """
    told = read_on_done(on_done, wait=wait)
    asked = read_asked(session.settings, flags)
    chosen = known_model(session, named_model(asked.prompts.model, model))
    order = order_of(asked, chosen)
    if dry_run:
        preview(session, order)
        return
    submission, added = submit_order(session.jobs, order, committed=_committed(session, told))
    # Workers look for new jobs twice a second, so nobody has to be told.
    if added:
        remark_workers(submission, chosen)
    if wait:
        wait_for(session, submission, on_done=told.command)


def known_model(session: Session, asked: str | None) -> KnownModel:
    """Return the model that was asked for, or the only one there is; BadInputError otherwise."""
    return choose_model(known_models(session.settings, session.jobs.workers()), asked)


def wait_for(
    session: Session, submission: Submission, *, timeout: float | None = None, on_done: str | None = None
) -> None:
    """Follow a submission to its end, and let a command hear of it.

    Raises:
        SomeFailedError: when not every job has its picture.
        HookFailedError: when the command failed too often.
    """
    with display() as shown:
        for status in follow(session.jobs, submission.id, lease=session.settings.lease, timeout=timeout):
            shown.update(status)
    if on_done is not None:
        run_command(on_done, status)
    check_all_succeeded(session.jobs, status)


def remark_workers(submission: Submission, model: KnownModel) -> None:
    """Say on stderr what was submitted, and how to start a worker where none is running."""
    said = f"Submitted {count_of(submission.total, 'job')} for model {model.name}"
    if model.live_workers:
        remark(f"{said}; {count_of(model.live_workers, 'worker')} will render them.")
    elif model.reference is not None:
        remark(
            f"{said}; no worker is running yet; start one: `promptmill worker start --model {model.name}`."
        )
    else:
        remark(
            f"{said}; no worker is running: start one with "
            f"`promptmill worker start --model {model.name}=REPO_OR_PATH`."
        )


def _committed(session: Session, told: OnDone) -> Callable[[Submission], None]:
    """Return what is done as soon as a submission's row is safe."""

    def committed(submission: Submission) -> None:
        _print_id(submission)  # first: whoever is killed in between can repeat it, and knows what to look for
        if told.url is not None:
            session.jobs.add_hook(submission.id, told.url)

    return committed


def _print_id(submission: Submission) -> None:
    """Print the id; where nobody reads it any more, the jobs must go in all the same."""
    try:
        click.echo(submission.id)  # click flushes: the id is out before the jobs are in
    except OSError:
        silence_stdout()
        remark(f"Submission {submission.id}")
