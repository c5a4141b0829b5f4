"""`promptmill export`."""

from __future__ import annotations

from pathlib import Path

import click

from producer.grid import Grid, check_grid, check_pages, lay_out, write_grid
from producer.options import sidecar_flag, submission_argument
from producer.output import count_of, remark
from producer.pictures import HIDDEN_MARKER, check_folder, claim_folder, write_pictures
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.records import Submission, SubmissionState, being_pruned


@click.command(
    epilog="""\b
Examples:
  promptmill export otters --to pictures
  promptmill export @last --format grid --to sweep
  promptmill export @last --format imagefolder --to dataset && python -c \\
    'import datasets; print(datasets.load_dataset("imagefolder", data_dir="dataset"))'
"""
)
@submission_argument
@click.option(
    "--format",
    "layout",
    type=click.Choice(["imagefolder", "grid"]),
    default="imagefolder",
    show_default=True,
    help="imagefolder: pictures and metadata.jsonl. grid: also grid.png, which lays a sweep out as labelled "
    "rows and columns.",
)
@click.option(
    "--to", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where to."
)
@sidecar_flag
@pass_session
def export(session: Session, *, submission: str, layout: str, folder: Path, sidecar: bool) -> None:
    """Write a submission's pictures, in the order of the prompts, into a folder.

    Jobs without a picture are left out. The folder must be missing, empty, or from an earlier export of the
    same submission: then only what is missing is written.
    """
    found = session.jobs.find_submission(submission)
    if found.state is SubmissionState.PRUNING:
        raise BadInputError(being_pruned(found.id))
    grid = _laid_out(session, found) if layout == "grid" else None
    check_folder(folder, submission=found.id, marker=HIDDEN_MARKER)
    claim_folder(folder, found, marker=HIDDEN_MARKER)
    pictures = write_pictures(session.jobs, session.images, found, folder, sidecars=sidecar)
    paths = {picture.job.index: picture.path for picture in pictures}
    if grid:
        write_grid(grid, paths, folder)
    click.echo(folder)
    remark(f"Exported {count_of(len(paths), 'picture')} of {count_of(found.total, 'job')}.")


def _laid_out(session: Session, submission: Submission) -> Grid:
    """Lay a submission out before anything is written."""
    check_grid(submission.total)
    grid = lay_out(list(session.jobs.jobs(submission.id)))
    check_pages(grid)
    return grid
