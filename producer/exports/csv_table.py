"""A table in CSV: links to the pictures where they are, and what is said of each job; no pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

from producer.exports.kinds import flat
from producer.exports.rows import link_row
from producer.exports.survey import Survey
from producer.exports.target import Target
from storage.imagestore import ImageStore
from storage.jobstore import JobStore

CSV_NAME = "pictures.csv"


def write_csv(
    store: JobStore, images: ImageStore, found: Survey, target: Target, *, done: Callable[[int], None]
) -> None:
    """Write the table; see `write_imagefolder`."""
    with target.published(CSV_NAME) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found.columns)
        for job in found.jobs(store):
            link = None if job.image is None else images.link(job.image.key)
            row = link_row(job, found.submission, link)
            writer.writerow(_cell(flat(row.get(name), kind)) for name, kind in found.columns.items())
            done(1)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
