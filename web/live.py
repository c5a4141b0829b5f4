"""Live progress: one look at the database a second for everybody who watches, not one for each of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import structlog

from storage.errors import PromptmillError
from storage.records import Status

log = structlog.get_logger()

INTERVAL = 1.0  # seconds between two looks; heartbeats write once a second
SILENCE = 15.0  # seconds after which a watcher hears that the connection still lives
MAX_WATCHED = 200  # submissions of one watcher
AT_ONCE = 100  # submissions of one statement: databases bound how much one may name

Look = Callable[[Sequence[str]], list[Status]]


class Live:
    """Tells watchers what has changed of the submissions that they watch.

    Args:
        look: reads how far some submissions are; called in a thread.
        interval: seconds between two looks.
    """

    def __init__(self, look: Look, *, interval: float = INTERVAL) -> None:
        self._look = look
        self._interval = interval
        self._watched: Counter[str] = Counter()
        self._latest: dict[str, Status] = {}
        self._news = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None

    async def watch(self, submissions: Collection[str]) -> AsyncGenerator[Status | None]:
        """Yield the status of each submission, then again whenever it changes; None when nothing did.

        A submission that is done is not looked at any more, and when all are it ends.
        """
        told: dict[str, Status] = {}
        async with self._watching(submissions) as left:
            while left:
                changed = await self._changed(left, told)
                if not changed:
                    yield None
                for status in changed:
                    told[status.submission.id] = status
                    if status.done:
                        self._leave(left, [status.submission.id])
                    yield status

    async def _changed(self, submissions: Collection[str], told: dict[str, Status]) -> list[Status]:
        """Wait until there is something that was not told; return nothing after SILENCE."""

        def news() -> list[Status]:
            known = (self._latest[one] for one in submissions if one in self._latest)
            return [status for status in known if told.get(status.submission.id) != status]

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SILENCE), self._news:
                await self._news.wait_for(news)
        return news()

    @asynccontextmanager
    async def _watching(self, submissions: Collection[str]) -> AsyncIterator[dict[str, None]]:
        """Have submissions looked at meanwhile; yield those that still are, in their order."""
        left = dict.fromkeys(submissions)
        self._watched.update(list(left))
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            yield left
        finally:
            self._leave(left, list(left))

    def _leave(self, left: dict[str, None], submissions: Collection[str]) -> None:
        self._watched.subtract(submissions)
        self._watched = +self._watched
        for one in submissions:
            left.pop(one, None)
            if one not in self._watched:
                self._latest.pop(one, None)

    async def _poll(self) -> None:
        """Look until nobody watches any more, whatever a look meets: watchers keep what they know then."""
        while self._watched:
            began = time.monotonic()
            found: list[Status] = []
            watched = list(self._watched)
            try:
                for at in range(0, len(watched), AT_ONCE):
                    found += await asyncio.to_thread(self._look, watched[at : at + AT_ONCE])
            except PromptmillError as error:  # the database is away
                log.warning("cannot look", action="look", error=str(error))
            except Exception:  # an error of ours would end the progress on every page, and say so nowhere
                log.exception("cannot look", action="look")
            async with self._news:
                self._latest |= {
                    each.submission.id: each for each in found if each.submission.id in self._watched
                }
                self._news.notify_all()
            # Counting a million rows takes a moment: never keep the database busy with being watched.
            await asyncio.sleep(max(self._interval, 5 * (time.monotonic() - began)))

    async def close(self) -> None:
        """Stop looking."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
