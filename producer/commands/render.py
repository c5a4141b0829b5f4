"""`promptmill render`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from producer.background_worker import check_worker_extra
from producer.input_flags import input_flags
from producer.models import check_listed, default_model, known_models, named_model, resolve_model, serving
from producer.options import (
    SubmissionReference,
    dry_run_flag,
    given_flags,
    job_flags,
    prompt_options,
    rewriting_flags,
    sidecar_flag,
    submission_flags,
)
from producer.ordering import order_of, read_asked
from producer.output import remark
from producer.pictures import check_folder, check_makeable
from producer.preview import preview
from producer.rendering import Rendering, check_resumable, run
from producer.session import Session, pass_session
from producer.submitting import Order, submit_order
from producer.worker_flags import check_worker_flags, worker_flags
from storage.errors import BadInputError
from storage.models import BUILTIN_MODEL, ModelReference, configured_models, parse_model
from storage.records import Submission, SubmissionState

OUT = Path("out")
WORKER_FLAGS = ("devices", "dtype", "lanes", "compile", "cuda_graphs", "lora_files", "mode", "controlnet")
RESUME_FLAGS = (
    "--resume",
    "--out",
    "--sidecar",
    "--model",
    "--lora-file",
    *(f"--{name.replace('_', '-')}" for name in WORKER_FLAGS),
)


@click.command(
    epilog="""\b
Examples:
  promptmill render prompts.txt
  promptmill render -p "A watercolor painting of an otter" --schedule karras --images 4 --out otters
  promptmill render prompts.txt --model sd15=stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype float16
  promptmill render prompts.csv --images 4 --skip-bad --dry-run
  promptmill render -p "A red hat" --init-image otter.png --mask head.png --out hats
  promptmill render --resume @last
"""
)
@prompt_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Default: out/NAME, or out/ID without a --name.",
)
@sidecar_flag
@click.option(
    "--resume", metavar="ID", type=SubmissionReference(), help="Complete a submission; takes no prompts."
)
@click.option(
    "--model", metavar="NAME=REPO_OR_PATH[@REVISION]",
    help="A known name, or a repo, folder or FILE.safetensors[@CONFIGS] to know by NAME. Default: the only "
    f"configured one, else {BUILTIN_MODEL}.",
)  # fmt: skip
@job_flags
@input_flags
@rewriting_flags
@submission_flags
@worker_flags
@dry_run_flag
@pass_session
@click.pass_context
def render(ctx: click.Context, session: Session, /, **given: Any) -> None:
    """Render prompts into a folder: everything in one go.

    Checks everything, submits the prompts, starts a worker if none serves the model, shows the progress,
    writes the pictures in the order of the prompts, with metadata.jsonl and a contact sheet, and stops what
    it started. What Ctrl-C interrupts, --resume completes.

    A FILE is text, one prompt a line with kohya's or A1111's options if any, or CSV, TSV, JSON Lines, JSON or
    Parquet with columns such as prompt, negative, seed, steps; - is standard input. What a line says beats
    the flags. A setting that is not given is the model's recommendation (`promptmill models`), else the
    general default.
    """
    flags = {name: given.pop(name) for name in WORKER_FLAGS}
    out, resume, model = given.pop("out"), given.pop("resume"), given.pop("model")
    sidecars, dry_run = given.pop("sidecar"), given.pop("dry_run")
    check_worker_flags(parse_model(BUILTIN_MODEL), **flags)
    if resume is None:
        # Another dtype or mode makes other pictures of the same jobs.
        other_pictures = bool(given_flags(ctx, WORKER_FLAGS))
        order, reference = _ordered(
            session, model, out, other_pictures=other_pictures, lora_files=flags["lora_files"], **given
        )
        if dry_run:
            preview(session, order)
            return
        submission, _ = submit_order(
            session.jobs, order, committed=lambda submission: remark(f"Submission {submission.id}")
        )
    else:
        _refuse_job_flags(ctx)
        submission = session.jobs.find_submission(resume)
        reference = _model_of(session, submission, model)
    out = out or OUT / (submission.name or submission.id)
    check_folder(out, submission=submission.id)
    run(
        Rendering(
            session=session,
            submission=_opened(session, submission),
            model=reference,
            options=check_worker_flags(reference, **flags, parent_pipe=True),
            given=given_flags(ctx, WORKER_FLAGS),
            out=out,
            sidecars=sidecars,
        )
    )


def _ordered(
    session: Session,
    named: str | None,
    out: Path | None,
    *,
    other_pictures: bool,
    lora_files: Sequence[str],
    **flags: Any,
) -> tuple[Order, ModelReference]:
    """Check everything, before anything is written."""
    if named:
        resolve_model(session.settings, named)  # before a long list is read
    asked = read_asked(session.settings, flags)
    listed, name = asked.prompts.model, asked.share["name"]
    chosen = named_model(listed, named or None)
    if not named and listed is not None:
        check_listed(session.settings, listed)
    model = resolve_model(session.settings, chosen or default_model(session.settings))
    if out or name:
        check_folder(out or OUT / str(name), key=asked.share["key"])
    else:
        check_makeable(OUT / "any")
    workers = session.jobs.workers()
    if not serving(workers, model.name, lease=session.settings.lease):
        check_worker_extra()
    known = known_models(session.settings, workers, model, loras=lora_files)[model.name]
    order = order_of(asked, known, again=other_pictures)
    if chosen is None and not session.settings.models:
        remark(f"No --model is given and none configured; taking {model.name}, which comes with promptmill.")
    return order, model


def _refuse_job_flags(ctx: click.Context) -> None:
    """A submission's jobs are what they are: a flag that would be ignored is an error."""
    foreign = [flag for flag in given_flags(ctx) if flag not in RESUME_FLAGS]
    if ctx.params["files"]:
        foreign.insert(0, ctx.params["files"][0])
    if foreign:
        raise BadInputError(f"--resume completes a submission as it is; leave out {', '.join(foreign)}.")


def _model_of(session: Session, submission: Submission, model: str | None) -> ModelReference:
    """Return where the submission's model comes from: --model, or the configuration."""
    if model is None:
        reference = configured_models(session.settings.models).get(submission.model)
        if reference is None:
            raise BadInputError(
                f"Submission {submission.id} is for model {submission.model}, which is not configured; "
                f"add --model {submission.model}=REPO_OR_PATH."
            )
        return reference
    reference = resolve_model(session.settings, model)
    if reference.name != submission.model:
        raise BadInputError(
            f"Submission {submission.id} is for model {submission.model}, not {reference.name}; "
            f"write --model {submission.model}=REPO_OR_PATH."
        )
    return reference


def _opened(session: Session, submission: Submission) -> Submission:
    """Return the submission, open; BadInputError if only the user can say what to do with it."""
    check_resumable(submission)
    if submission.state is SubmissionState.PAUSED:
        return session.jobs.open_submission(submission.id)
    return submission
