"""One export from its options to its files: check, look, write, and put the card beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from producer.exports.arrow import check_arrow
from producer.exports.card import write_card
from producer.exports.csv_table import write_csv
from producer.exports.imagefolder import write_imagefolder
from producer.exports.licences import licence_of
from producer.exports.marker import Marker, check_target
from producer.exports.names import DEFAULT_TEMPLATE, parse_template
from producer.exports.options import CSV, GRID, IMAGEFOLDER, SHARDED, SHEET, WEBDATASET, ExportOptions
from producer.exports.parquet import Parquet
from producer.exports.sharded import Progress, ShardFormat, cut, write_shards
from producer.exports.sheets import write_grid_pages, write_sheets
from producer.exports.survey import Survey, survey
from producer.exports.target import Target
from producer.exports.webdataset import WebDataset, shard_key
from producer.grid import Grid, check_grid, check_pages, lay_out
from producer.session import Session
from storage.errors import BadInputError
from storage.models import configured_models
from storage.records import Submission


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """An export that was checked, and of which nothing is written yet.

    Attributes:
        session: of the command.
        found: what was found of its jobs.
        target: where it goes.
        marker: what is there already.
        grid: how the pictures are laid out, for a grid.
    """

    session: Session
    found: Survey
    target: Target
    marker: Marker
    grid: Grid | None = None

    def names(self, shards: Sequence[int]) -> list[str]:
        """Return the first pictures' names, also those that come with their shards."""
        named = self.found.options.name is not None
        if self.found.options.format != WEBDATASET or named:
            return self.found.names
        keys = (shard_key(number, at) for number, count in enumerate(shards) for at in range(count))
        return [f"{key}.{name.rpartition('.')[2]}" for name, key in zip(self.found.names, keys, strict=False)]

    def shards(self) -> list[int]:
        """Count the pictures of each shard; none for formats without shards."""
        if self.found.options.format not in SHARDED:
            return []
        layout, size = _layout(self), self.found.options.shard_size
        return [len(entries) for entries in cut(layout, self.found.samples(self.session.jobs), size)]


def prepare(
    session: Session, submission: Submission, options: ExportOptions, columns: list[str], target: Target
) -> Export:
    """Check everything that can be checked before anything is written.

    Args:
        session: of the command.
        submission: whose pictures.
        options: what is wanted.
        columns: the prompt file's own columns.
        target: where to.

    Raises:
        BadInputError: for a template, a target or a filter that cannot be used.
    """
    if options.format in SHARDED:
        check_arrow(options.format)
    text = DEFAULT_TEMPLATE if options.name is None else options.name
    template = parse_template(text, columns, dots=options.format != WEBDATASET)
    marker = check_target(target, submission, options)
    grid = _laid_out(session, submission, options) if options.format == GRID else None
    found = survey(session.jobs, submission, options, template)
    if not found.count and options.meant:
        statuses = " or ".join(options.statuses)
        raise BadInputError(
            f"No {statuses} job of {submission.id} is meant by --match and --where; nothing was written."
        )
    return Export(session=session, found=found, target=target, marker=marker, grid=grid)


def write(export: Export, *, done: Callable[[int], None]) -> tuple[Progress | None, bool]:
    """Write an export, or what is missing of it.

    Args:
        export: a checked one.
        done: is told how many more jobs are in it.

    Returns:
        What happened to its shards, if it has any, and whether the card is ours.

    Raises:
        UnreachableError: when a picture cannot be read, or the target not be written.
    """
    session, found, target, marker = export.session, export.found, export.target, export.marker
    target.make()
    marker.save(target)
    progress = None
    if found.options.format in SHARDED:
        progress = write_shards(
            _layout(export), found.samples(session.jobs), session.images, target, marker,
            size=found.options.shard_size, done=done,
        )  # fmt: skip
    else:
        _WRITERS[found.options.format](session.jobs, session.images, found, target, done=done)
    if export.grid is not None:
        write_grid_pages(session.images, export.grid, target)
    model = configured_models(session.settings.models).get(found.submission.model)
    counts = session.jobs.counts(found.submission.id)
    ours = write_card(found, counts, licence_of(model), target, marker)
    marker.save(target)
    return progress, ours


_WRITERS = {IMAGEFOLDER: write_imagefolder, GRID: write_imagefolder, CSV: write_csv, SHEET: write_sheets}


def _layout(export: Export) -> ShardFormat:
    found = export.found
    return WebDataset(found) if found.options.format == WEBDATASET else Parquet(found, export.session.images)


def _laid_out(session: Session, submission: Submission, options: ExportOptions) -> Grid:
    """Lay out all jobs that are meant, also those without a picture yet."""
    check_grid(submission.total)
    grid = lay_out(list(session.jobs.jobs(submission.id, meant=options.meant or None)))
    check_pages(grid)
    return grid
