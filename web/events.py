"""Server-sent events: each watcher hears of the submissions that it watches, as HTML or as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from storage.records import Status
from storage.status_object import status_fields
from web.api_models import PROBLEMS
from web.live import MAX_WATCHED
from web.pages import told
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
    """Send the part of a page that shows a submission whenever it changes, and `end` once all are done."""

    def drawn(status: Status) -> str:
        shown, state, because = told(status)
        return render(PARTS[part], status=shown, state=state, because=because)

    return await _stream(site, ids, drawn, last=event("end", "", "done"))


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
    return await _stream(site, ids, lambda status: json.dumps(status_fields(status)))


async def _stream(
    site: Site, references: list[str], drawn: Callable[[Status], str], *, last: str = ""
) -> StreamingResponse:
    with ExitStack() as place:
        place.enter_context(site.watchers.one())
        found = await run_in_threadpool(lambda: {site.submission(one).id for one in references})
        return _Watching(_events(site, found, drawn, last), place.pop_all())


class _Watching(StreamingResponse):
    """Holds a watcher's place to its own end: events that nobody began to read would not give it back."""

    def __init__(self, events: AsyncIterator[str], place: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def _events(
    site: Site, watched: set[str], drawn: Callable[[Status], str], last: str
) -> AsyncIterator[str]:
    async with aclosing(site.live.watch(watched)) as heard:
        async for status in heard:
            if status is None:
                yield ": still here\n\n"
            else:
                yield event("status", status.submission.id, drawn(status))
    if last:
        yield last


def event(kind: str, identity: str, data: str) -> str:
    """Write one event as https://html.spec.whatwg.org/multipage/server-sent-events.html has it."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"event: {kind}\nid: {identity}\n{lines}\n"
