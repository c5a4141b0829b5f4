"""One door for existing clients: `POST /v1/images/generations` in OpenAI's shape.

https://platform.openai.com/docs/api-reference/images/create. A request is a submission like any other; the
same one, seed included, is answered from what is there.
"""

from __future__ import annotations

import base64
import time
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from producer.pictures import read_picture
from storage.parameters import MAX_PROMPT_LENGTH, MAX_SEED
from storage.records import JobStatus, Submission
from web.api_models import PROBLEMS
from web.problems import RefusedError
from web.site import Site, SiteOf
from web.submitting import Flags, as_upload, submit

MAX_IMAGES = 10
WAIT = 300.0  # seconds, where the caller says nothing
MAX_WAIT = 3600.0
NAME = "images/generations"  # where such a submission's prompt came from


class Generation(BaseModel):
    """OpenAI's request; seed, steps and so on are ours, and go into the client's `extra_body`.

    What has no meaning here (`quality`, `style`, `user`, …) is read and left alone.
    """

    model_config = ConfigDict(extra="ignore", title="Generation")

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_LENGTH)]
    model: Annotated[str, StringConstraints(max_length=100)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Annotated[str, StringConstraints(max_length=20)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    negative_prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_LENGTH)] = ""
    steps: int | None = None
    guidance: float | None = None
    sampler: Annotated[str, StringConstraints(max_length=100)] | None = None
    wait: Annotated[float, Field(gt=0, le=MAX_WAIT, description="Seconds.")] = WAIT


class Generated(BaseModel):
    """One picture: its bytes, or where they are."""

    b64_json: str | None = None
    url: str | None = None


class Generations(BaseModel):
    """OpenAI's answer, and the submission that it came of."""

    created: int
    data: list[Generated]
    submission: str


class Fault(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None
    code: None


class FaultAnswer(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: Fault


# What is refused before it comes here is a problem document, as everywhere.
_FAULTS: dict[int | str, dict[str, Any]] = {
    **{status: PROBLEMS[status] for status in (401, 403, 421, 429, 500)},
    **{status: {"model": FaultAnswer} for status in (400, 422, 503, 504, 507)},
    413: PROBLEMS[413] | {"model": FaultAnswer},
}

router = APIRouter(tags=["openai"], responses=_FAULTS)


@router.post("/images/generations", response_model_exclude_none=True, summary="Generate, as OpenAI has it")
async def generate(request: Request, site: SiteOf, asked: Generation) -> Generations:
    """Submit a prompt, wait until its pictures are there, and return them in the order of their seeds."""
    with site.generating.one():
        prompts = [as_upload([{"prompt": asked.prompt}], name=NAME)]
        done = await site.threads.submit(lambda: submit(site, _flags(asked), prompts))
        await _wait(request, site, done.submission, asked.wait)
    base = None if asked.response_format != "url" else str(request.base_url).rstrip("/")
    data = await run_in_threadpool(_pictures, site, done.submission, base)
    return Generations(created=int(time.time()), data=data, submission=done.submission.id)


def _flags(asked: Generation) -> Flags:
    return Flags(
        model=asked.model,
        images=asked.n or 1,
        size=None if asked.size in (None, "auto") else asked.size,
        seed=asked.seed,
        negative=asked.negative_prompt,
        steps=asked.steps,
        guidance=asked.guidance,
        sampler=asked.sampler,
        image_format=asked.output_format,
        input_format="json",
    )


async def _wait(request: Request, site: Site, submission: Submission, seconds: float) -> None:
    """Return once a submission is done; RefusedError when the caller waits no longer, or has gone."""
    heard = anyio.CancelScope(deadline=anyio.current_time() + seconds)
    is_done = has_gone = False

    async def listen() -> None:
        nonlocal has_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_gone = True
        heard.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with heard:
            is_done = await _is_done(site, submission)
        tasks.cancel_scope.cancel()
    if is_done:
        return
    why = "its caller has gone" if has_gone else f"it is not done after {seconds:g} s"
    raise RefusedError(
        HTTPStatus.GATEWAY_TIMEOUT,
        f"Submission {submission.id} goes on, but {why}; send the same request with a seed to get its "
        f"pictures later, or see /api/v1/submissions/{submission.id}.",
    )


async def _is_done(site: Site, submission: Submission) -> bool:
    async with aclosing(site.live.watch([submission.id])) as heard:
        async for status in heard:
            if status is not None and status.done:
                return True
    return False


def _pictures(site: Site, submission: Submission, base: str | None) -> list[Generated]:
    found = []
    for job in site.jobs_of(submission):
        if job.status is not JobStatus.SUCCEEDED or job.image is None:
            reason = job.error_message or "it has no picture"
            raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, f"Job {job.label} is {job.status}: {reason}")
        if base is not None:
            found.append(Generated(url=f"{base}/api/v1/submissions/{job.submission}/jobs/{job.index}/image"))
        else:
            data = read_picture(site.images, job.image)
            found.append(Generated(b64_json=base64.b64encode(data).decode()))
    return found


def error(status: int, detail: str) -> JSONResponse:
    """Return an error in OpenAI's shape, which its clients show.

    They repeat what has failed, which would submit a prompt again and again: they are told not to.
    """
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    content = {"error": {"message": detail, "type": kind, "param": None, "code": None}}
    again = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse(content, status_code=status, headers={"x-should-retry": str(again).lower()})
