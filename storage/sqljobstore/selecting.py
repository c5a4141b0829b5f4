"""Read the jobs of a submission in the order of their index, all of them or those that a filter means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, literal_column, select

from storage.filters import JobFilter
from storage.records import Image, Job, JobStatus
from storage.sqljobstore.base import (
    CHOSEN_LATER,
    IMAGES,
    JOBS,
    SqlBase,
    status_is,
    to_image,
    to_job,
    to_parameters,
)

PAGE = 1_000
FEW = 5_000  # jobs, up to which sorting them for each page costs nothing
FILTERED_BY = [JOBS.c[name] for name in ("index", "prompt", "negative_prompt", "seed", "options", "extra")]
FILTERED_BY += [JOBS.c[name] for name in CHOSEN_LATER]


class Selecting(SqlBase):
    """Yield jobs; nothing here writes."""

    def jobs(
        self,
        submission: str,
        *,
        statuses: Sequence[JobStatus] = (),
        meant: JobFilter | None = None,
        after: int = -1,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """See `JobStore.jobs`."""
        left, order = limit, self._order(submission, statuses)
        while left is None or left > 0:
            size = PAGE if left is None or meant else min(PAGE, left)
            page = [JOBS.c.submission == submission, order > after]
            if statuses:
                page.append(status_is(*statuses))
            with self.database.read() as connection:
                seen, after, found = _page(connection, page, order, size=size, after=after, meant=meant)
            found = found if left is None else found[:left]
            yield from found
            if seen < size:
                return
            left = None if left is None else left - len(found)

    def _order(self, submission: str, statuses: Sequence[JobStatus]) -> ColumnElement[int]:
        """Return what pages are ordered by: the index, or the same in a form that no database finds in order.

        Few jobs of a million, such as those that failed, are looked for by their status, and sorted.
        """
        if not statuses:
            return JOBS.c.index
        some: Select[Any] = select(literal_column("1")).where(
            JOBS.c.submission == submission, status_is(*statuses)
        )
        with self.database.read() as connection:
            few = len(connection.execute(some.limit(FEW)).all()) < FEW
        return JOBS.c.index + literal_column("0") if few else JOBS.c.index

    def columns(self, submission: str) -> list[str]:
        """See `JobStore.columns`."""
        if self.database.is_sqlite:
            keys = func.json_each(JOBS.c.extra).table_valued("key")
            query = select(keys.c.key).select_from(JOBS).join(keys, JOBS.c.submission == submission)
        else:
            query = select(func.json_object_keys(JOBS.c.extra)).where(JOBS.c.submission == submission)
        with self.database.read() as connection:
            return sorted(connection.execute(query.distinct()).scalars())


def _page(
    connection: Connection,
    page: Sequence[ColumnElement[bool]],
    order: ColumnElement[int],
    *,
    size: int,
    after: int,
    meant: JobFilter | None,
) -> tuple[int, int, list[Job]]:
    """Return how many rows were looked at, the last one's index, and the jobs that are meant."""
    if not meant:
        rows = connection.execute(with_images().where(*page).order_by(order).limit(size)).mappings()
        found = [job_of(row) for row in rows]
        return len(found), found[-1].index if found else after, found
    # Most rows may not be meant, so what only those need that are is read of those alone.
    light = connection.execute(select(*FILTERED_BY).where(*page).order_by(order).limit(size))
    looked_at = light.mappings().all()
    kept = [row["index"] for row in looked_at if meant.keeps(to_parameters(row))]
    if not kept:
        return len(looked_at), looked_at[-1]["index"] if looked_at else after, []
    query = with_images().where(*page, JOBS.c.index.in_(kept)).order_by(order)
    found = [job_of(row) for row in connection.execute(query).mappings()]
    return len(looked_at), looked_at[-1]["index"], found


def with_images() -> Select[Any]:
    """Select jobs, each with its image's columns if it has one."""
    image = [column.label(f"image_{column.name}") for column in IMAGES.c]
    return select(JOBS, *image).select_from(JOBS.outerjoin(IMAGES, IMAGES.c.job == JOBS.c.id))


def job_of(row: RowMapping, progress: float | None = None) -> Job:
    """Make a record of a row of `with_images`."""
    image: Image | None = None
    if row["image_id"] is not None:
        image = to_image({column.name: row[f"image_{column.name}"] for column in IMAGES.c})
    return to_job(row, image, progress)
