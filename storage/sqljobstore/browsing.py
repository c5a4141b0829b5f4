"""Pages of submissions and jobs, each read by an index, whatever is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, literal, literal_column, select

from storage.browsing import LOOK_AT, JobPage
from storage.filters import JobFilter
from storage.records import Job, JobStatus, Status, Submission
from storage.sqljobstore.base import JOBS, SUBMISSIONS, SqlBase, status_is, to_parameters, to_submission
from storage.sqljobstore.progress import few_jobs, statuses_of
from storage.sqljobstore.selecting import FILTERED_BY, PAGE, job_of, with_images

_ZERO: ColumnElement[int] = literal_column("0")
_NOTHING: ColumnElement[str] = literal_column("''")


class Browsing(SqlBase):
    """Answer questions a page at a time; nothing here writes."""

    def newest(self, *, before: int | None = None, limit: int = 50) -> list[Submission]:
        """See `Browsing.newest`."""
        query = select(SUBMISSIONS).order_by(SUBMISSIONS.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(SUBMISSIONS.c.seq < before)
        with self.database.read() as connection:
            return [to_submission(row) for row in connection.execute(query).mappings()]

    def statuses(self, submissions: Sequence[str], *, lease: float) -> list[Status]:
        """See `Browsing.statuses`."""
        query = select(SUBMISSIONS).where(SUBMISSIONS.c.id.in_(submissions))
        with self.database.read() as connection:
            found = {row["id"]: to_submission(row) for row in connection.execute(query).mappings()}
            wanted = [found[one] for one in submissions if one in found]
            return statuses_of(connection, wanted, lease, rate_when_done=False) if wanted else []

    def page(
        self,
        submission: str,
        *,
        statuses: Sequence[JobStatus] = (),
        meant: JobFilter | None = None,
        cursor: int | None = None,
        backwards: bool = False,
        limit: int = 60,
    ) -> JobPage:
        """See `Browsing.page`."""
        found: list[Job] = []
        seen = 0
        with self.database.read() as connection:
            view = _View(connection, submission, statuses, backwards=backwards)
            if not meant:
                rows = view.read(with_images(), cursor, limit + 1)
                found = [job_of(row) for row in rows[:limit]]
                return JobPage(jobs=found, cursor=found[-1].index if len(rows) > limit else None)
            while seen < LOOK_AT:
                rows = view.read(select(*FILTERED_BY), cursor, PAGE)
                kept = [row["index"] for row in rows if meant.keeps(to_parameters(row))]
                found += view.these(kept[: limit - len(found)])
                if len(found) == limit:
                    ended = len(rows) < PAGE and found[-1].index == kept[-1]
                    return JobPage(jobs=found, cursor=None if ended else found[-1].index)
                if len(rows) < PAGE:
                    return JobPage(jobs=found, cursor=None)
                cursor, seen = rows[-1]["index"], seen + len(rows)
        return JobPage(jobs=found, cursor=cursor, complete=False)

    def these(self, submission: str, indices: Sequence[int]) -> list[Job]:
        """See `Browsing.these`."""
        with self.database.read() as connection:
            return _View(connection, submission, (), backwards=False).these(indices)


class _View:
    """The jobs of a submission that have one of some statuses, in the order of their index.

    Which index is the right one depends on how many jobs have the status. Few are read by their status and
    sorted; of many the next ones are soon met in the order of the index. Neither database knows that well
    enough to be left to choose: the column that must not lead is hidden in an expression.
    """

    def __init__(
        self, connection: Connection, submission: str, statuses: Sequence[JobStatus], *, backwards: bool
    ) -> None:
        self._connection = connection
        self._backwards = backwards
        self._mine: list[ColumnElement[bool]] = [JOBS.c.submission == submission]
        self._index: ColumnElement[int] = JOBS.c.index
        if statuses and few_jobs(connection, submission, statuses):
            self._mine.append(status_is(*statuses))
            self._index = JOBS.c.index + _ZERO
        elif statuses:
            self._mine.append((JOBS.c.status + _NOTHING).in_([literal(one.value) for one in statuses]))

    def read(self, query: Select[Any], cursor: int | None, limit: int) -> Sequence[RowMapping]:
        """Return the rows that come after `cursor`."""
        where = list(self._mine)
        if cursor is not None:
            where.append(self._index < cursor if self._backwards else self._index > cursor)
        order = self._index.desc() if self._backwards else self._index
        return self._connection.execute(query.where(*where).order_by(order).limit(limit)).mappings().all()

    def these(self, indices: Sequence[int]) -> list[Job]:
        """Return the jobs with these indices, whole, in the order of the view."""
        if not indices:
            return []
        query = with_images().where(self._mine[0], JOBS.c.index.in_(indices))
        order = JOBS.c.index.desc() if self._backwards else JOBS.c.index
        return [job_of(row) for row in self._connection.execute(query.order_by(order)).mappings()]
