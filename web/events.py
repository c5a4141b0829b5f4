"""Server-sent events: each watcher hears of the submissions that it watches, as HTML or as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from storage.records import Status
from storage.status_object import status_fields
from web.api_models import PROBLEMS
from web.live import MAX_WATCHED
from web.pages import told
from web.problems import RefusedError
from web.rendering import render
from web.site import Site, SiteOf

router = APIRouter()
api_router = APIRouter(tags=["events"], responses=PROBLEMS)

PARTS = {"row": "_row.html", "head": "_head.html"}
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies pass events on at once
Ids = Annotated[list[str], Query(alias="id", min_length=1, max_length=MAX_WATCHED)]


@router.get("/live")
async def live(
    site: SiteOf, ids: Ids, part: Annotated[str, Query(pattern="^(row|head)$")] = "row"
) -> StreamingResponse:
    """Send the part of a page that shows a submission whenever it changes."""

    def drawn(status: Status) -> str:
        shown, state, because = told(status)
        return render(PARTS[part], status=shown, state=state, because=because)

    return await _stream(site, ids, drawn, ends=False)


@api_router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
    summary="Progress, live",
)
async def api_events(site: SiteOf, ids: Ids) -> StreamingResponse:
    """Send an event `status` for each submission, and again whenever it changes, until all are done.

    Its data is what `GET /submissions/{reference}` answers as `submission`.
    """
    return await _stream(site, ids, lambda status: json.dumps(status_fields(status)), ends=True)


async def _stream(
    site: Site, references: list[str], drawn: Callable[[Status], str], *, ends: bool
) -> StreamingResponse:
    if site.live.is_full:
        raise RefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Too many are watching; try again later.",
            headers={"retry-after": "60"},
        )
    found = await run_in_threadpool(lambda: {site.submission(one).id for one in references})
    return StreamingResponse(
        _events(site, found, drawn, ends=ends), media_type="text/event-stream", headers=HEADERS
    )


async def _events(
    site: Site, watched: set[str], drawn: Callable[[Status], str], *, ends: bool
) -> AsyncIterator[str]:
    left = set(watched)
    async with aclosing(site.live.watch(watched)) as heard:
        async for status in heard:
            if status is None:
                yield ": still here\n\n"
                continue
            yield event("status", status.submission.id, drawn(status))
            if ends and status.done:
                left.discard(status.submission.id)
                if not left:
                    return


def event(kind: str, identity: str, data: str) -> str:
    """Write one event as https://html.spec.whatwg.org/multipage/server-sent-events.html has it."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"event: {kind}\nid: {identity}\n{lines}\n"
