"""Pages to read: submissions, one submission's jobs, one job, two jobs, a sweep's grid, workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import HTMLResponse

from producer.described import image_fields, job_fields, worker_fields
from producer.jobs import settings_of
from producer.models import is_alive
from producer.retyped import render_command, reproduce_command
from storage.browsing import LOOK_AT, JobPage
from storage.records import Job, Status, Submission
from storage.samplers import SAMPLERS
from storage.status_object import derived_state, waiting_because
from web.filters import Wanted, WantedJobs
from web.grids import grid_of
from web.problems import NotThereError
from web.rendering import page, render
from web.site import Site, SiteOf

router = APIRouter(default_response_class=HTMLResponse)

SUBMISSIONS = 50  # of one page
JOBS = 60  # likewise
CELLS = 100  # that are asked for again at once
RATE_WINDOW = 30.0  # seconds over which a worker's images/s are counted
_SHOWN_ELSEWHERE = {"job", "status", "prompt", "negative_prompt", *("error_type", "error_message")}

Cursor = Annotated[int | None, Query(ge=0, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """The next job that a filter means, or the one up to which none was.

    Attributes:
        is_meant: whether it is one that the filter means.
    """

    index: int
    is_meant: bool = True


def told(status: Status) -> tuple[Status, str, str | None]:
    """Return a status with its state and the reason why it waits, as people see them."""
    return status, derived_state(status), waiting_because(status)


@router.get("/")
def submissions(
    request: Request, site: SiteOf, cursor: Annotated[int | None, Query(ge=0, le=2**62)] = None
) -> HTMLResponse:
    """List the submissions, newest first."""
    found = site.jobs.newest(before=cursor, limit=SUBMISSIONS + 1)
    shown = found[:SUBMISSIONS]
    return page(
        request,
        "submissions.html",
        rows=[told(status) for status in site.statuses([one.id for one in shown])],
        cursor=shown[-1].seq if len(found) > SUBMISSIONS else None,
        older_than=cursor,
    )


@router.get("/submissions/{reference}")
def submission(
    request: Request, site: SiteOf, reference: str, wanted: WantedJobs, cursor: Cursor = None
) -> HTMLResponse:
    """Show a submission and its jobs; only the next jobs where a page that is open asks for more."""
    found = site.submission(reference)
    jobs = site.page(found.id, wanted, cursor=cursor, limit=JOBS)
    values: dict[str, Any] = {
        "found": jobs,
        "query": wanted.query,
        "look_at": LOOK_AT,
        "more": _more(found, wanted, jobs.cursor),
    }
    if cursor is not None and request.headers.get("hx-request") == "true":
        return HTMLResponse(render("_cells.html", **values))
    status, state, because = told(site.status(found))
    return page(
        request,
        "submission.html",
        status=status, state=state, because=because, wanted=wanted, cursor=cursor,
        samplers=list(SAMPLERS), columns=_columns(jobs.jobs), **values,
    )  # fmt: skip


def _more(submission: Submission, wanted: Wanted, cursor: int | None) -> str:
    and_so = f"{wanted.query}&" if wanted.query else "?"
    return f"/submissions/{submission.id}{and_so}{urlencode({'cursor': cursor})}"


def _columns(jobs: list[Job]) -> list[str]:
    """Return the prompt file's own columns, as far as these jobs have them."""
    return sorted({name for job in jobs for name in job.parameters.extra})


@router.get("/submissions/{reference}/cells")
def cells(
    site: SiteOf,
    reference: str,
    wanted: WantedJobs,
    index: Annotated[list[Index], Query(max_length=CELLS)],
) -> HTMLResponse:
    """Draw the cells of some jobs anew, whether the filter means them or not: their links keep it."""
    found = site.submission(reference)
    drawn = JobPage(jobs=site.these(found, index), cursor=None)
    return HTMLResponse(render("_cells.html", found=drawn, query=wanted.query))


@router.get("/submissions/{reference}/jobs/{index}")
def job(request: Request, site: SiteOf, reference: str, index: int, wanted: WantedJobs) -> HTMLResponse:
    """Show a job with all that is known of it, and the way to those beside it."""
    found = site.job(reference, index)
    its = site.submission(found.submission)
    return page(
        request,
        "job.html",
        job=found,
        submission=its,
        query=wanted.query,
        before=_beside(site, found, wanted, backwards=True),
        behind=_beside(site, found, wanted, backwards=False),
        picture=_picture(found),
        settings=_settings(found, its),
        more=_more_of(found),
        command=render_command(found, its),
        reproduce=reproduce_command(found),
    )


def _beside(site: Site, job: Job, wanted: Wanted, *, backwards: bool) -> Beside | None:
    one = site.page(job.submission, wanted, cursor=job.index, backwards=backwards, limit=1)
    if one.jobs:
        return Beside(index=one.jobs[0].index)
    # So many were looked at in vain: from where that ended, the next look goes on.
    return None if one.complete or one.cursor is None else Beside(index=one.cursor, is_meant=False)


def _picture(job: Job) -> str:
    """Return where a job's picture is: under another address once it is another picture."""
    tag = job.image.file_sha256[:12] if job.image else ""
    return f"/submissions/{job.submission}/jobs/{job.index}/picture?v={tag}"


def _settings(job: Job, submission: Submission) -> list[tuple[str, Any]]:
    asked = job.parameters
    fields = {name: value for name, value in settings_of(asked).items() if name != "negative_prompt"}
    return _known({"model": submission.model} | fields | asked.options | asked.extra)


def _more_of(job: Job) -> list[tuple[str, Any]]:
    fields = job_fields(job) | image_fields(job)
    hidden = _SHOWN_ELSEWHERE | settings_of(job.parameters).keys() | {"options", "extra"}
    return _known({name: value for name, value in fields.items() if name not in hidden})


def _known(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (name.replace("_", " "), value) for name, value in fields.items() if value not in (None, "", [], {})
    ]


@router.get("/compare")
def compare(
    request: Request,
    site: SiteOf,
    left: Annotated[str, Query(max_length=120)] = "",
    right: Annotated[str, Query(max_length=120)] = "",
) -> HTMLResponse:
    """Show two jobs side by side, and what differs in what they were asked for."""
    one, other = (_named(site, name) for name in (left, right))
    return page(
        request,
        "compare.html",
        left=one,
        right=other,
        differs=_differences(site, one, other) if one and other else [],
        same_file=_file(one) is not None and _file(one) == _file(other),
    )


def _named(site: Site, label: str) -> Job | None:
    if not label:
        return None
    reference, colon, index = label.strip().rpartition(":")
    if not colon or not index.isdecimal():
        raise NotThereError(f"{label!r} names no job; write ID:INDEX.")
    return site.job(reference, int(index[:12]))


def _file(job: Job | None) -> str | None:
    return job.image.file_sha256 if job and job.image else None


def _differences(site: Site, one: Job, other: Job) -> list[tuple[str, Any, Any]]:
    sides = [_compared(site, job) for job in (one, other)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    rows = [(name.replace("_", " "), sides[0].get(name), sides[1].get(name)) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _compared(site: Site, job: Job) -> dict[str, Any]:
    asked = job.parameters
    numerics = job.image.numerics if job.image else {}
    fields = {"model": site.submission(job.submission).model, "prompt": asked.prompt} | settings_of(asked)
    return fields | asked.options | asked.extra | numerics


@router.get("/submissions/{reference}/grid")
def grid(request: Request, site: SiteOf, reference: str) -> HTMLResponse:
    """Lay a sweep out as rows, columns and panels."""
    found = site.submission(reference)
    return page(request, "grid.html", submission=found, **grid_of(site, found))


@router.get("/workers")
def workers(request: Request, site: SiteOf, all: bool = False) -> HTMLResponse:  # noqa: A002, FBT001, FBT002  (the address)
    """List the workers, newest first."""
    return page(request, "workers.html", workers=worker_rows(site, everyone=all), everyone=all)


def worker_rows(site: Site, *, everyone: bool) -> list[dict[str, Any]]:
    """Return what is known of the workers: of those that live, or of all."""
    rates = site.jobs.rates(over=RATE_WINDOW)
    rows = []
    for found in site.workers(alive_only=not everyone):
        alive = is_alive(found, lease=site.settings.lease)
        if alive or everyone:
            rows.append(worker_fields(found, alive=alive, rate=rates.get(found.incarnation, 0.0)))
    return rows
