"""Pictures to look at: contact sheets, and the grid of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from PIL import Image

from producer.contact_sheet import PER_PAGE, draw_sheet, sheet_name
from producer.exports.survey import Survey
from producer.exports.target import Target
from producer.grid import Grid, draw_pages, page_name
from producer.in_order import in_order
from producer.pictures import read_picture
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.records import Job


def write_sheets(
    store: JobStore, images: ImageStore, found: Survey, target: Target, *, done: Callable[[int], None]
) -> None:
    """Write as many contact sheets as the pictures take; see `write_imagefolder`."""
    fetched = in_order(
        lambda sample: read_picture(images, sample.image), found.samples(store), local=images.is_local
    )
    page = 0
    while cells := [(sample.job, data) for sample, data in islice(fetched, PER_PAGE)]:
        page += 1
        _save(draw_sheet(cells), sheet_name(page), target)
        done(len(cells))


def write_grid_pages(images: ImageStore, grid: Grid, target: Target) -> None:
    """Write the pages of a sweep's grid."""

    def picture(job: Job) -> bytes | None:
        return None if job.image is None else read_picture(images, job.image)

    for number, page in enumerate(draw_pages(grid, picture), 1):
        _save(page, page_name(number), target)


def _save(drawn: Image.Image, name: str, target: Target) -> None:
    with target.published(name) as path, path.open("wb") as file:
        drawn.save(file, "PNG")
