"""The HTTP API: what the command line does, under /api/v1."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Form, Header, Path, Query, Response, UploadFile
from pydantic import ValidationError

from producer import steering
from producer.described import image_fields, job_fields, submission_row
from producer.options import MAX_KEY_LENGTH
from producer.readers.opening import Upload
from storage.browsing import PAGE_LIMIT
from storage.errors import BadInputError
from storage.records import Job, Submission
from storage.status_object import status_fields
from web import api_models as said
from web.filters import WantedJobs
from web.pages import worker_rows
from web.site import Site, SiteOf
from web.submitting import Flags, NewSubmission, as_upload, named_upload, submit, with_key

router = APIRouter(responses=said.PROBLEMS)

Reference = Annotated[
    str, Path(max_length=100, description="A submission's id, the beginning of one, its name, or @last.")
]
Index = Annotated[int, Path(ge=0, lt=2**31, description="A job's index in its submission.")]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=MAX_KEY_LENGTH)]


@router.post(
    "/submissions", status_code=HTTPStatus.CREATED, tags=["submissions"], summary="Submit prompts",
    responses={200: {"model": said.NewSubmissionAnswer, "description": "It was there already."}},
)  # fmt: skip
async def add_submission(
    response: Response, site: SiteOf, new: NewSubmission, idempotency_key: Key = None
) -> said.NewSubmissionAnswer:
    """Submit prompts with the command line's own checks: all faults are told, and nothing is written.

    Everything is safe in the database once this is answered; no worker has to run.
    """
    flags = with_key(new, idempotency_key).model_copy(update={"input_format": "json"})
    with site.submitting.one():
        return await site.threads.submit(
            lambda: _added(response, site, flags, as_upload(new.prompts, name="prompts"))
        )


@router.post(
    "/submissions/file", status_code=HTTPStatus.CREATED, tags=["submissions"], summary="Submit a prompt file",
    responses={200: {"model": said.NewSubmissionAnswer, "description": "It was there already."}},
)  # fmt: skip
async def add_file(
    response: Response,
    site: SiteOf,
    file: UploadFile,
    settings: Annotated[str, Form(max_length=100_000, description="Settings as JSON.")] = "{}",
    idempotency_key: Key = None,
) -> said.NewSubmissionAnswer:
    """Submit a prompt file: text, CSV, TSV, JSON, JSON Lines or Parquet."""
    flags = with_key(_read_flags(settings), idempotency_key)
    with site.submitting.one():
        return await site.threads.submit(
            lambda: _added(response, site, flags, named_upload(file.filename, file.file))
        )


def _added(response: Response, site: Site, flags: Flags, sent: Upload) -> said.NewSubmissionAnswer:
    done = submit(site, flags, [sent])
    if not done.new:
        response.status_code = HTTPStatus.OK
    response.headers["location"] = f"/api/v1/submissions/{done.submission.id}"
    return said.NewSubmissionAnswer(
        submission=_status(site, done.submission), new=done.new, remarks=done.remarks
    )


@router.get("/submissions", tags=["submissions"], summary="List submissions")
def list_submissions(
    site: SiteOf, cursor: Annotated[int | None, Query(ge=0, lt=2**62)] = None, limit: Limit = 50
) -> said.SubmissionPage:
    """List submissions, the newest first."""
    found = site.jobs.newest(before=cursor, limit=limit + 1)
    rows = [
        said.SubmissionRow.model_validate(submission_row(each))
        for each in site.statuses([one.id for one in found[:limit]])
    ]
    return said.SubmissionPage(submissions=rows, cursor=found[limit - 1].seq if len(found) > limit else None)


@router.get("/submissions/{reference}", tags=["submissions"], summary="How far a submission is")
def get_submission(site: SiteOf, reference: Reference) -> said.OneSubmission:
    """Say how far a submission is, and why it waits if it does."""
    return said.OneSubmission(submission=_status(site, site.submission(reference)))


@router.patch("/submissions/{reference}", tags=["submissions"], summary="Change a submission's share")
def adjust(site: SiteOf, reference: Reference, share: Annotated[said.Share, Body()]) -> said.Said:
    """Change priority, weight or limit, from the next dispatch on, priority also from the next claim on."""
    found = site.submission(reference)
    told = steering.adjust(site.jobs, found.id, **share.model_dump())
    return said.Said(submission=_status(site, found), said=[told])


@router.post("/submissions/{reference}/{action}", tags=["submissions"], summary="Steer a submission")
def act(
    site: SiteOf, reference: Reference, action: Literal["cancel", "pause", "resume", "retry"]
) -> said.Said:
    """Cancel, pause, resume or retry a submission."""
    found = site.submission(reference)
    told = steering.act(site.jobs, found.id, action, lease=site.settings.lease)
    return said.Said(submission=_status(site, site.submission(found.id)), said=told)


@router.get("/submissions/{reference}/jobs", tags=["jobs"], summary="List jobs")
def list_jobs(
    site: SiteOf,
    reference: Reference,
    wanted: WantedJobs,
    cursor: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Limit = 60,
) -> said.JobPageFields:
    """List jobs in the order of their index, those that a filter means."""
    found = site.submission(reference)
    page = site.page(found.id, wanted, cursor=cursor, limit=limit)
    return said.JobPageFields(
        jobs=[_job(job) for job in page.jobs], cursor=page.cursor, complete=page.complete
    )


@router.get("/submissions/{reference}/jobs/{index}", tags=["jobs"], summary="A job")
def get_job(site: SiteOf, reference: Reference, index: Index) -> said.OneJob:
    """Say all that is known of a job."""
    return said.OneJob(job=_job(site.job(reference, index)))


@router.post("/submissions/{reference}/jobs/{index}/retry", tags=["jobs"], summary="Retry a job")
def retry_job(site: SiteOf, reference: Reference, index: Index) -> said.Said:
    """Bring a failed or cancelled job back."""
    job = site.job(reference, index)
    told = steering.retry(site.jobs, job.label, lease=site.settings.lease)
    return said.Said(submission=_status(site, site.submission(job.submission)), said=told)


@router.get("/workers", tags=["workers"], summary="List workers")
def list_workers(
    site: SiteOf,
    everyone: Annotated[bool, Query(alias="all", description="Also those that have stopped.")] = False,  # noqa: FBT002  (a parameter of the address)
) -> said.Workers:
    """List the workers, newest first."""
    rows = worker_rows(site, everyone=everyone)
    return said.Workers(workers=[said.WorkerFields.model_validate(row) for row in rows])


def _status(site: Site, submission: Submission) -> said.SubmissionStatus:
    return said.SubmissionStatus.model_validate(status_fields(site.status(submission)))


def _job(job: Job) -> said.JobFields:
    url = f"/api/v1/submissions/{job.submission}/jobs/{job.index}/image"
    image = {"url": url} | image_fields(job) if job.image else None
    return said.JobFields.model_validate(job_fields(job) | {"image": image})


def _read_flags(text: str) -> Flags:
    try:
        return Flags.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, ("settings", *first["loc"])))
        raise BadInputError(f"{where} cannot be used: {first['msg']}.") from error
