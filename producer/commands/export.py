"""`promptmill export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from producer.exports.options import CSV, DEFAULT_SHARD_SIZE, FORMATS, SHARDED, export_options
from producer.options import sidecar_flag, submission_argument
from producer.output import count_of, remark, size_of
from producer.session import Session, pass_session
from storage.errors import BadInputError
from storage.records import JobStatus, SubmissionState, being_pruned

if TYPE_CHECKING:
    from producer.exports.run import Export


@click.command(
    epilog="""\b
Examples:
  promptmill export otters --to pictures
  promptmill export @last --format grid --to sweep
  promptmill export @last --format webdataset --shard-size 500MB --to s3://BUCKET/otters
  promptmill export @last --format parquet --where sampler=lms --where style=neon --to neon
  promptmill export @last --match otter --name "{sampler}/{seed}" --to by-sampler --dry-run
  promptmill export @last --format csv --status failed --to failed
  promptmill export @last --format imagefolder --to dataset && python -c \\
    'import datasets; print(datasets.load_dataset("imagefolder", data_dir="dataset"))'
"""
)
@submission_argument
@click.option(
    "--format",
    "layout",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="imagefolder: pictures and metadata.jsonl. webdataset: tar shards in img2dataset's shape. parquet: "
    "tables with the pictures in them. csv: a table of links and parameters. contact-sheet: small pictures "
    "with captions. grid: an imagefolder and grid.png, which lays a sweep out as labelled rows and columns.",
)
@click.option("--to", required=True, metavar="DIR_OR_URL", help="Where to: a folder, or any fsspec URL.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([str(status) for status in JobStatus]),
    help="Jobs with this status; repeatable. Default: succeeded; others, without picture, for csv only.",
)
@click.option(
    "--match", default="", metavar="TEXT", help="Jobs whose prompt contains this, in upper or lower case."
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Jobs with this value in a column of the prompt file, or a setting such as sampler=lms; repeatable, "
    "and several values of one column are alternatives. No value means none.",
)
@click.option(
    "--name",
    metavar="TEMPLATE",
    help="Names of the pictures, without suffix, such as {sampler}/{index}-{prompt}: {index}, settings, and "
    "columns of the prompt file.",
)
@click.option(
    "--shard-size",
    metavar="SIZE",
    help=f"{', '.join(SHARDED)}: size at which a shard ends, such as 500MB.  [default: {DEFAULT_SHARD_SIZE}]",
)
@click.option("--link", is_flag=True, help="parquet: links to the pictures in the store instead of bytes.")
@click.option("--dry-run", is_flag=True, help="Only say how many pictures these are, and their names.")
@sidecar_flag
@pass_session
def export(session: Session, /, *, submission: str, to: str, dry_run: bool, where: Any, **flags: Any) -> None:
    """Write a submission's pictures, in the order of the prompts, in a format that others read.

    Jobs without a picture are left out. The target must be missing, empty, or from an earlier export of the
    same submission with the same options: then only what is missing is written, so what was interrupted is
    completed by the same command. A README.md beside the pictures is their dataset card.
    """
    from producer.exports.run import prepare  # noqa: PLC0415  (pictures and tables; --help needs none)
    from producer.exports.target import open_target  # noqa: PLC0415  (likewise)

    found = session.jobs.find_submission(submission)
    if found.state is SubmissionState.PRUNING:
        raise BadInputError(being_pruned(found.id))
    # To look for columns takes a moment with a million jobs.
    columns = session.jobs.columns(found.id) if where or flags["name"] else []
    options = export_options(where=where, columns=columns, **flags)
    exported = prepare(session, found, options, columns, open_target(to))
    if dry_run:
        _preview(exported)
    else:
        _write(exported)


def _preview(exported: Export) -> None:
    """Say what would be written."""
    found = exported.found
    shards = exported.shards()
    names = exported.names(shards)
    for name in names:
        click.echo(name)
    if found.count > len(names) > 0:
        remark(f"… and {found.count - len(names):,} more.")
    cut = f" in {count_of(len(shards), 'shard')}" if shards else ""
    table = found.options.format == CSV
    what = count_of(found.count, "job") if table else count_of(found.count, "picture")
    size = "" if table or found.options.link else f", {size_of(found.bytes)}"
    remark(f"{what}{size}{cut}. Nothing was written: --dry-run.")


def _write(exported: Export) -> None:
    from producer.exports.run import write  # noqa: PLC0415  (see above)
    from producer.follow import counting  # noqa: PLC0415  (likewise)

    found = exported.found
    with counting(found.count, title="exporting") as done:
        progress, card_is_ours = write(exported, done=done)
    click.echo(exported.target)
    noun = "row" if found.options.format == CSV else "picture"
    said = f"Exported {count_of(found.count, noun)} of {count_of(found.submission.total, 'job')}"
    if progress:
        said += f" in {count_of(progress.count, 'shard')}"
        said += f"; {progress.kept:,} were complete already" if progress.kept else ""
        said += f"; {progress.renewed:,} were made anew for jobs that came since" if progress.renewed else ""
    remark(f"{said}.")
    if not card_is_ours:
        remark("The README.md there is not the one that was written before, so it was left alone.")
