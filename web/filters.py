"""Which jobs a page shows: the filter of its form, as the address has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Query

from storage.errors import BadInputError
from storage.filters import JobFilter
from storage.records import JobStatus

MAX_TEXT = 200  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the form says; an empty text leaves it open.

    Attributes:
        q: a part of the prompt.
        status, sampler, seed: of the job.
        where: `column=value`, of any column that the job has.
    """

    q: str = ""
    status: str = ""
    sampler: str = ""
    seed: str = ""
    where: str = ""

    @property
    def query(self) -> str:
        """Return it as the end of an address, with its question mark; empty where nothing is wanted."""
        said = {name: getattr(self, name) for name in ("q", "status", "sampler", "seed", "where")}
        text = urlencode({name: value for name, value in said.items() if value})
        return f"?{text}" if text else ""

    @property
    def statuses(self) -> tuple[JobStatus, ...]:
        """The statuses that are wanted; none means any."""
        if not self.status:
            return ()
        try:
            return (JobStatus(self.status),)
        except ValueError as error:
            raise BadInputError(
                f"There is no status {self.status!r}; choose one of {', '.join(JobStatus)}."
            ) from error

    @property
    def meant(self) -> JobFilter:
        """The rest of it, which is looked for job by job."""
        where = {name: (getattr(self, name),) for name in ("sampler", "seed") if getattr(self, name)}
        if self.where:
            column, equals, value = self.where.partition("=")
            if not equals or not column.strip():
                raise BadInputError(f"{self.where!r} is no filter; write column=value.")
            where[column.strip()] = (value.strip(),)
        return JobFilter(match=self.q, where=where)


async def _wanted(
    q: Annotated[str, Query(max_length=MAX_TEXT, description="A part of the prompt.")] = "",
    status: Annotated[str, Query(max_length=20, description="Of the job.")] = "",
    sampler: Annotated[str, Query(max_length=MAX_TEXT, description="By its name here.")] = "",
    seed: Annotated[str, Query(max_length=MAX_TEXT, description="Of the job.")] = "",
    where: Annotated[
        str, Query(max_length=MAX_TEXT, description="column=value; also columns of the prompt file.")
    ] = "",
) -> Wanted:
    return Wanted(q=q, status=status, sampler=sampler.strip(), seed=seed.strip(), where=where)


WantedJobs = Annotated[Wanted, Depends(_wanted)]
